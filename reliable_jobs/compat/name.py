"""One undocumented name, and whether the installed library still has it."""

from __future__ import annotations

import dataclasses
import importlib
import logging
from types import CodeType, FunctionType, ModuleType
from typing import Any

logger = logging.getLogger(__name__)

_MISSING = object()
#: What leads from a property, a method or a decorated function to the function below it.
_LINKS = ("fget", "__func__", "__wrapped__")
#: More layers than any project has. Some objects answer every attribute, without end.
_MOST_LAYERS = 100
#: What Python's compiler puts among the constants of a function.
_LITERALS = (bool, bytes, CodeType, complex, float, frozenset, int, slice, str, tuple, type(None), type(...))


class _Gone(Exception):
    """The library lacks it."""


class _PutThere(Exception):
    """Another library, or the project, has put something over it: it can't be verified."""


@dataclasses.dataclass(frozen=True)
class Name:
    """One undocumented name.

    What another library has put over a library's function or class is looked through, where it leads to the original,
    and left alone otherwise: tracing libraries do so on many sites, and it works as the original does.

    Attributes:
        name: as a reader of the library knows it; its last part is the attribute.
        place: ``module:qualified.name`` of the object itself; or, if ``inside``, of the function whose code sets or
            reads the attribute. (Most attributes of an object are set by its ``__init__``, so its class lacks them.)
        inside: see ``place``.
        takes: parameters that it must have, in this order, after ``self``.
        since: the version from which on it exists, where that is not the oldest one that is supported; in older ones
            it is not verified.
        rare: its module serves some sites only, and is not imported to look.
    """

    name: str
    place: str
    inside: bool = False
    takes: tuple[str, ...] = ()
    since: str = ""
    rare: bool = False

    @property
    def module(self) -> str:
        return self.place.partition(":")[0]

    @property
    def attribute(self) -> str:
        return self.name.rpartition(".")[2]

    def problem(self) -> str | None:
        """What is wrong with it in the installed version; None if it is as expected, or not the library's any more.
        Imports its module."""
        try:
            module = importlib.import_module(self.module)
        except (ImportError, AttributeError) as error:
            return f"{self.place} is not there ({error})"
        try:
            return self._problem_of(self._find(module))
        except _Gone as error:
            return f"{self.place} is not there ({error})"
        except _PutThere as error:
            why = str(error)
        except Exception as error:  # of an object that somebody put there, and that answers in its own way
            why = repr(error)
        logger.debug("%s is not verified: %s has been replaced (%s).", self.name, self.place, why)
        return None

    def _find(self, module: Any) -> Any:
        found = module
        for part in self.place.partition(":")[2].split("."):
            # Not getattr(): a property or a class that builds things on access is to be found, not asked.
            owners = found.__mro__[:-1] if isinstance(found, type) else (found,)  # without object
            value = next((vars(owner)[part] for owner in owners if part in vars(owner)), _MISSING)
            if value is _MISSING:
                self._expect_own(found)
                raise _Gone(f"no {part}")
            found = _below_wrappers(value)
        return found

    def _problem_of(self, found: Any) -> str | None:
        if not self.inside and not self.takes:
            return None
        self._expect_own(found)
        code = getattr(found, "__code__", None)
        if self.inside and (code is None or not _mentions(code, self.attribute)):
            return f"{self.place} does not know {self.attribute!r} any more"
        parameters = [] if code is None else list(code.co_varnames[: code.co_argcount + code.co_kwonlyargcount])
        if parameters[:1] == ["self"]:
            del parameters[0]
        if parameters[: len(self.takes)] != list(self.takes):
            return f"{self.place} takes {', '.join(parameters) or 'nothing known'}, not {', '.join(self.takes)}"
        return None

    def _expect_own(self, found: Any) -> None:
        """
        Raises:
            _PutThere: it is not the library's own.
        """
        home = _home(found)
        if home.partition(".")[0] != self.module.partition(".")[0]:
            raise _PutThere(f"{type(found).__name__} of {home or 'an unknown module'}")
        if any(type(constant) not in _LITERALS for constant in getattr(_code(found), "co_consts", ())):
            raise _PutThere("its code has been rewritten")  # ddtrace does so: the wrapper is a constant of it


def _below_wrappers(found: Any) -> Any:
    for _ in range(_MOST_LAYERS):
        if issubclass(type(found), type):
            break
        inner = next((inner for link in _LINKS if (inner := getattr(found, link, None)) is not None), _MISSING)
        if inner is _MISSING:
            break
        found = inner
    return found


def _home(found: Any) -> str:
    """The module whose source made an object. A wrapper may copy each name of what it wraps: its globals are its own
    module's."""
    if isinstance(found, ModuleType):
        return found.__name__
    if type(found) is FunctionType:
        return str(found.__globals__.get("__name__", ""))
    return str((found if issubclass(type(found), type) else type(found)).__module__)


def _code(found: Any) -> CodeType | None:
    return found.__code__ if type(found) is FunctionType else None


def _mentions(code: CodeType, attribute: str) -> bool:
    if attribute in code.co_names or attribute in code.co_varnames:
        return True
    return any(_is_in(constant, attribute) for constant in code.co_consts)


def _is_in(constant: Any, attribute: str) -> bool:
    if isinstance(constant, CodeType):
        return _mentions(constant, attribute)
    if isinstance(constant, (tuple, frozenset)):
        return any(_is_in(one, attribute) for one in constant)
    return bool(constant == attribute)
