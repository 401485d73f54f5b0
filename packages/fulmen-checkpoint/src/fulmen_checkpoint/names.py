"""File names from templates: ``{epoch}-{val_loss:.2f}`` -> ``epoch=3-val_loss=0.12``."""

from __future__ import annotations

import re
from collections.abc import Mapping

from fulmen import ConfigurationError

_FIELD = re.compile(r"\{([^{}:]+)(?::([^{}]*))?\}")
_UNSAFE = re.compile(r"[/\\:\s]")
UNKNOWN = "unknown"
"""Stands in a name for a metric that was not measured on the weights in the file."""


def check_template(template: str) -> str:
    """``template``.

    Raises:
        ConfigurationError: It is empty, has a folder in it or braces that do not pair.
    """
    rest = _FIELD.sub("", template)
    if not template or "{" in rest or "}" in rest:
        raise ConfigurationError(
            f"ModelCheckpoint filename={template!r} is not allowed; allowed: text with fields such as {{epoch}} or "
            "{val_loss:.2f}"
        )
    if "/" in rest or "\\" in rest:
        raise ConfigurationError(f"ModelCheckpoint filename={template!r} has a folder in it; put the folder into dirpath")
    return template


def fields_of(template: str) -> list[str]:
    """The names in braces."""
    return [found.group(1) for found in _FIELD.finditer(template)]


def fill(template: str, values: Mapping[str, float], insert_names: bool, equals: str = "=") -> str:
    """The file name without its extension.

    Args:
        template: Text with fields.
        values: What to fill in. A field without a value becomes :data:`UNKNOWN`.
        insert_names: Whether to write ``name=`` before each value. A character that could make a folder becomes ``_``.
        equals: Stands between name and value.

    Raises:
        ConfigurationError: A format does not fit its value.
    """

    def replace(found: re.Match[str]) -> str:
        name, form = found.group(1), found.group(2) or ""
        try:
            text = format(values[name], form) if name in values else UNKNOWN
        except ValueError as error:
            raise ConfigurationError(
                f"ModelCheckpoint filename={template!r}: {name} = {values[name]!r} does not fit the format {form!r}: {error}"
            ) from error
        return f"{_UNSAFE.sub('_', name)}{equals}{text}" if insert_names else text

    return _FIELD.sub(replace, template)
