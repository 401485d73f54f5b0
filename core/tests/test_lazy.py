"""Names that are imported when they are used."""

from __future__ import annotations

import sys

import pytest

PACKAGE = """
from fulmen.lazy import attributes
__getattr__, __dir__ = attributes(__name__, {"Answer": "heavy"})
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    folder = tmp_path / "lazy_package"
    folder.mkdir()
    (folder / "__init__.py").write_text(PACKAGE)
    (folder / "heavy.py").write_text("class Answer: ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    import lazy_package

    yield lazy_package
    for name in ("lazy_package", "lazy_package.heavy"):
        sys.modules.pop(name, None)


def test_a_module_is_imported_when_its_name_is_used(package):
    assert "lazy_package.heavy" not in sys.modules
    assert "Answer" in dir(package)
    assert package.Answer is sys.modules["lazy_package.heavy"].Answer
    assert vars(package)["Answer"] is package.Answer


def test_an_unknown_name_lists_those_that_there_are(package):
    with pytest.raises(AttributeError) as caught:
        package.Answr  # noqa: B018
    assert str(caught.value) == "module 'lazy_package' has no attribute 'Answr'; did you mean 'Answer'?; it has: Answer"
