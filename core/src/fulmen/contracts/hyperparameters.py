"""``save_hyperparameters`` and what it keeps: shared by :class:`fulmen.Module` and :class:`fulmen.DataModule`."""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import json
import os
import typing
from argparse import Namespace
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from fulmen.errors import CheckpointError, ConfigurationError, ModuleError, did_you_mean, listing

T = TypeVar("T")
_LARGEST_FILE = 2**22
_MOST_VALUES = 1_000_000


class Hyperparameters(dict[str, Any]):
    """A dictionary whose keys can also be read and set as attributes.

    >>> Hyperparameters(lr=0.1).lr
    0.1
    """

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"there is no hyper-parameter {name!r}; saved are: {listing(self)}") from None

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __delattr__(self, name: str) -> None:
        del self[name]

    def __repr__(self) -> str:
        return "\n".join(f'"{name}": {value!r}' for name, value in self.items())


class HasHyperparameters:
    """Gives an object ``save_hyperparameters`` and ``hparams``."""

    def save_hyperparameters(
        self,
        *args: Any,
        ignore: str | Iterable[str] | None = None,
        frame: FrameType | None = None,
        logger: bool = True,
    ) -> None:
        """Keep constructor arguments in ``self.hparams`` and in every checkpoint.

        Without arguments, all arguments of ``__init__`` are kept, those of a subclass's ``__init__`` included, and
        ``**kwargs`` flattened. With names, only those. With one mapping, dataclass or namespace, its contents.

        Args:
            *args: Names of constructor arguments, or one object that holds the hyper-parameters.
            ignore: Names to leave out.
            frame: The frame of ``__init__``; ``None`` takes the caller's.
            logger: Whether the loggers receive them when a run starts.

        Raises:
            ConfigurationError: A name is no argument of ``__init__``, or a single object is of another kind.
        """
        frame = frame or _caller(inspect.currentframe())
        arguments = _init_arguments(self, frame)
        ignored = {ignore} if isinstance(ignore, str) else set(ignore or ())
        if args and not isinstance(args[0], str):
            values, name = _from_object(args[0]), _name_of(args[0], arguments)
        else:
            values, name = _select(arguments, args), None
        kept = {key: value for key, value in values.items() if key not in ignored}
        self.__dict__["_hparams"] = Hyperparameters({**self.hparams, **kept})
        self.__dict__["_hparams_initial"] = Hyperparameters(self.hparams)
        self.__dict__["_hparams_name"] = name
        self.__dict__["_hparams_logged"] = logger

    @property
    def hparams(self) -> Hyperparameters:
        """The saved hyper-parameters; empty where :meth:`save_hyperparameters` was not called."""
        hparams: Hyperparameters = self.__dict__.setdefault("_hparams", Hyperparameters())
        return hparams

    @property
    def hparams_initial(self) -> Hyperparameters:
        """The hyper-parameters as they were when they were last saved; a copy."""
        return Hyperparameters(self.__dict__.get("_hparams_initial", {}))

    @property
    def hparams_name(self) -> str | None:
        """The constructor argument that held all hyper-parameters as one object; ``None`` where there is none."""
        name: str | None = self.__dict__.get("_hparams_name")
        return name

    @property
    def logs_hyperparameters(self) -> bool:
        """Whether the loggers receive :attr:`hparams` when a run starts."""
        return bool(self.hparams) and bool(self.__dict__.get("_hparams_logged", True))


def plain(value: Any) -> Any:
    """``value`` with dataclasses, namespaces and mappings, also nested ones, turned into dictionaries."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Namespace):
        return {key: plain(item) for key, item in vars(value).items()}
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(plain(item) for item in value)
    return value


def init_arguments_from(cls: type, saved: Mapping[str, Any], name: str | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments that build ``cls`` from saved hyper-parameters; ``given`` ones win.

    Args:
        cls: The class to build. It alone decides which types are made: nothing named in a file is imported.
        saved: The hyper-parameters as plain data.
        name: The argument that takes all of them as one object, or ``None``.
        given: Arguments of the caller.
    """
    for key in saved:
        if not isinstance(key, str):
            raise TypeError(f"{key!r} is not the name of an argument")
    parameters = inspect.signature(cls).parameters
    hints = _hints(cls.__init__)  # type: ignore[misc]  # of exactly this class
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    whole = parameters.get(name or "")
    if whole is not None and whole.kind is not whole.VAR_KEYWORD and name not in saved:
        found: dict[str, Any] = {whole.name: _rebuild(hints.get(whole.name), dict(saved))}
    else:
        found = {key: _rebuild(hints.get(key), value) for key, value in saved.items() if takes_any or key in parameters}
    return {**found, **given}


if TYPE_CHECKING:
    of_class = classmethod
else:

    class of_class(classmethod):  # noqa: N801  it is used as classmethod is
        """A class method that makes an object, and must not be mistaken for one that changes the object it is called on."""

        def __get__(self, instance: object, owner: type) -> Any:
            return super().__get__(None, owner) if instance is None else self._refuse

        def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
            name = self.__func__.__name__
            raise ModuleError(
                f"{name} makes a new object, and would leave the one that it is called on as it is; call it on the class, and "
                f"take what it returns: model = Model.{name}(...)"
            )


def rebuild(cls: type[T], saved: Mapping[str, Any], name: str | None, given: Mapping[str, Any], source: str) -> T:
    """An object of ``cls`` with the arguments that :func:`init_arguments_from` finds.

    Raises:
        ConfigurationError: One of ``given`` is no argument of the constructor.
        CheckpointError: ``source`` does not hold an argument that the constructor needs, and it is not given.
    """
    parameters = [p for p in inspect.signature(cls).parameters.values() if p.kind is not p.VAR_POSITIONAL]
    names = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD]
    unknown = [key for key in given if key not in names]
    if unknown and len(names) == len(parameters):
        raise ConfigurationError(
            f"{cls.__name__} has no argument {unknown[0]!r}{did_you_mean(unknown[0], names)}; it has: {listing(names)}"
        )
    arguments = init_arguments_from(cls, saved, name, given)
    missing = [p.name for p in parameters if p.name in names and p.default is p.empty and p.name not in arguments]
    if missing:
        raise CheckpointError(
            f"{source} does not hold the arguments {listing(missing)} of {cls.__name__}, which save_hyperparameters did not "
            f"keep; pass them: {cls.__name__}.load_from_checkpoint(..., {missing[0]}=...)"
        )
    return cls(**arguments)


def read_hparams_file(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The hyper-parameters in a file: JSON, which ``hparams.yaml`` of fulmen also is, or YAML where PyYAML is installed."""
    if not Path(path).is_file() or Path(path).stat().st_size > _LARGEST_FILE:
        raise ConfigurationError(
            f"{path} is no file of hyper-parameters: there is none, or it has more than {_LARGEST_FILE} bytes"
        )
    try:
        text = Path(path).read_text(encoding="utf-8")
        try:
            found = json.loads(text)
        except json.JSONDecodeError:
            if importlib.util.find_spec("yaml") is None:
                raise ConfigurationError(f"{path} is not JSON; to read it as YAML: pip install pyyaml") from None
            found = importlib.import_module("yaml").safe_load(text)
    except ConfigurationError:
        raise
    except Exception as error:  # each parser has errors of its own
        raise ConfigurationError(f"{path} cannot be read: {type(error).__name__}: {str(error)[:300]}") from error
    if not isinstance(found, dict):
        raise ConfigurationError(f"{path} does not hold a mapping of hyper-parameters")
    if not _is_small(found):
        raise ConfigurationError(f"{path} repeats parts of itself until it holds more than {_MOST_VALUES} values")
    return found


def _is_small(value: Any) -> bool:
    """Whether it is, with every alias of YAML written out: a few lines can stand for more than any memory holds."""
    waiting, count = [value], 0
    while waiting and count <= _MOST_VALUES:
        each = waiting.pop()
        count += 1
        waiting += each.values() if isinstance(each, dict) else each if isinstance(each, list) else ()
    return count <= _MOST_VALUES


def _rebuild(hint: Any, value: Any) -> Any:
    """A dictionary as the dataclass or namespace that the constructor's annotation asks for."""
    if not isinstance(value, dict):
        return value
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        hints = _hints(hint)
        known = {f.name for f in dataclasses.fields(hint) if f.init}
        return hint(**{key: _rebuild(hints.get(key), item) for key, item in value.items() if key in known})
    return Namespace(**value) if hint is Namespace else Hyperparameters(value)


def _hints(subject: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(subject)
    except (NameError, TypeError):  # an annotation that exists for type checkers only decides nothing here
        return {}


def _caller(frame: FrameType | None) -> FrameType:
    if frame is None or frame.f_back is None:
        raise ConfigurationError("save_hyperparameters needs the frame of __init__, and this Python gives none: pass frame=")
    return frame.f_back


def _init_arguments(owner: object, frame: FrameType | None) -> dict[str, Any]:
    """The arguments of ``owner.__init__``, and of the subclasses' ``__init__`` that called it, outermost last."""
    found: dict[str, Any] = {}
    while frame is not None and frame.f_code.co_name == "__init__":
        names, varargs, keywords, values = inspect.getargvalues(frame)
        if not names or values[names[0]] is not owner:
            break
        if varargs and values[varargs]:
            found[varargs] = values[varargs]
        found.update({name: values[name] for name in names[1:]})
        found.update(values[keywords] if keywords else {})
        frame = frame.f_back
    return found


def _select(arguments: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    for name in names:
        if name not in arguments:
            raise ConfigurationError(
                f"save_hyperparameters({name!r}): __init__ has no such argument; it has: {listing(arguments)}"
            )
    return {name: arguments[name] for name in names or arguments}


def _from_object(value: Any) -> dict[str, Any]:
    found = plain(value)
    if not isinstance(found, dict):
        raise ConfigurationError(
            f"save_hyperparameters takes names, or one mapping, dataclass or namespace; got {type(value).__name__}"
        )
    return found


def _name_of(value: Any, arguments: dict[str, Any]) -> str | None:
    return next((name for name, argument in arguments.items() if argument is value), None)
