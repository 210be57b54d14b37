"""The register of undocumented names: what each is for, where it stands in its library, and which tests pin it.

A name is undocumented if neither the library's guides nor its API reference describe it, or if it begins with an
underscore. A function that uses some is declared so::

    @CELERY.undocumented("Task._orig_run", inside="celery.app.autoretry:add_autoretry_behaviour", tests=["test_adopt"])
    def function_below_autoretry(task): ...

    open_blocks = DJANGO.attribute("connection.atomic_blocks", "The ``atomic`` blocks …", inside=INIT, tests=[…])

:func:`verify` runs when Django starts and when a worker starts. docs/architecture.md's table is made of the same
declarations (``python tools/undocumented.py``), and ``tools/pins.py`` runs the tests that they name.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.metadata
import operator
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from django.core.exceptions import ImproperlyConfigured

from reliable_jobs.compat.name import Name

_F = TypeVar("_F", bound=Callable[..., Any])


class IncompatibleLibrary(ImproperlyConfigured):
    """An installed library lacks a name that reliable_jobs needs, or has it in another shape."""


@dataclasses.dataclass(frozen=True)
class Use:
    """A function or class of this folder, with the names that it uses."""

    library: Library
    what: Any
    names: tuple[Name, ...]
    #: Names of test files, without ``.py``.
    tests: tuple[str, ...]
    #: What it is needed for, in one paragraph.
    why: str
    #: The module of this folder, and the line in it.
    place: tuple[str, int]


@dataclasses.dataclass(eq=False)
class Library:
    """One library that names are used of.

    Attributes:
        title: for readers.
        distribution: its name on the package index.
        tried: the versions whose source was read, and with which the pinning tests have run.
        optional: it is installed on some sites only; nothing here may import it.
    """

    title: str
    distribution: str
    tried: str
    optional: bool = False
    uses: list[Use] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        LIBRARIES.append(self)

    def undocumented(
        self,
        name: str,
        *more: str,
        at: str = "",
        inside: str = "",
        takes: Sequence[str] = (),
        since: str = "",
        rare: bool = False,
        tests: Sequence[str] = (),
    ) -> Callable[[_F], _F]:
        """Declare what a function uses; several declarations may be put above one function.

        Args:
            name, more: names at the same place.
            at: the place of the object itself: for one name only.
            inside: the place of code that mentions the names.
            takes, since, rare: see :class:`Name`.
            tests: files that are red without the names.
        """
        names = [
            Name(one, inside or at, bool(inside), tuple(takes), since, rare or self.optional) for one in (name, *more)
        ]
        return self._declared(names, tests, _caller())

    def members(self, of: str, table: Mapping[str, Sequence[str]], *, tests: Sequence[str]) -> Callable[[_F], _F]:
        """Declare the members of one class that a function or class uses, as :meth:`undocumented` does one by one.

        Args:
            of: the place of the class.
            table: their names, each with the parameters that it must have; none for an attribute.
            tests: as for :meth:`undocumented`.
        """
        kind = of.partition(":")[2]
        names = [Name(f"{kind}.{one}", f"{of}.{one}", takes=tuple(takes)) for one, takes in table.items()]
        return self._declared(names, tests, _caller())

    def _declared(self, names: Sequence[Name], tests: Sequence[str], place: tuple[str, int]) -> Callable[[_F], _F]:
        def declare(function: _F) -> _F:
            before = next((use for use in self.uses if use.what is function), None)
            if before is not None:
                self.uses.remove(before)
            why = " ".join((function.__doc__ or "").strip().partition("\n\n")[0].split())
            known = before or Use(self, function, (), (), why, place)
            files = dict.fromkeys((*tests, *known.tests))
            self.uses.append(dataclasses.replace(known, names=(*names, *known.names), tests=tuple(files)))
            return function

        return declare

    def attribute(
        self, name: str, why: str, *, at: str = "", inside: str = "", through: str = "", tests: Sequence[str] = ()
    ) -> Any:
        """Declare an attribute that is only read; returns what reads it off an object: no more than a name for it, so
        that neither a reader nor the interpreter makes a detour.

        Args:
            why: what it is, and what it is needed for.
            through: the attribute of the object that leads to it.
            name, at, inside, tests: as for :meth:`undocumented`.
        """
        declared = Name(name, inside or at, bool(inside))
        reader = operator.attrgetter(f"{through}.{declared.attribute}" if through else declared.attribute)
        self.uses.append(Use(self, reader, (declared,), tuple(tests), why, _caller()))
        return reader

    def method(self, name: str, why: str, *, at: str, takes: Sequence[str], tests: Sequence[str]) -> str:
        """Declare a method that is put aside for a moment; returns its name, for ``setattr``.

        Args:
            why, name, at, takes, tests: as for :meth:`attribute`.
        """
        declared = Name(name, at, takes=tuple(takes))
        attribute = declared.attribute
        self.uses.append(Use(self, attribute, (declared,), tuple(tests), why, _caller()))
        return attribute

    def installed(self) -> str:
        try:
            return importlib.metadata.version(self.distribution) or "of an unknown version"
        except (importlib.metadata.PackageNotFoundError, KeyError):
            return "of an unknown version"

    def error(self, problem: str) -> IncompatibleLibrary:
        return IncompatibleLibrary(
            f"reliable_jobs can't work with {self.title} {self.installed()}: {problem}. It was tried with {self.title} "
            f"{self.tried}. Install one of these, or a release of reliable_jobs that knows the installed one."
        )

    @contextlib.contextmanager
    def importing(self) -> Iterator[None]:
        """Around imports of undocumented modules and names.

        Raises:
            IncompatibleLibrary: one of them is gone.
        """
        try:
            yield
        except ImportError as error:
            raise self.error(str(error)) from error


LIBRARIES: list[Library] = []


def problems(*, load: bool) -> Iterator[IncompatibleLibrary]:
    """What is wrong with the installed libraries.

    Args:
        load: also look at names whose modules this process has not imported, and import them (but not what serves some
            sites only)
    """
    for library in LIBRARIES:
        for use in library.uses:
            for name in use.names:
                if name.module not in sys.modules and (name.rare or not load):
                    continue
                if name.since and _installed(library.distribution) < _version(name.since):
                    continue
                problem = name.problem()
                if problem is not None:
                    # Under python -OO there are no docstrings to say why.
                    why = f". It is needed for this: {use.why.rstrip('.')}" if use.why else ""
                    yield library.error(f"{name.name}: {problem}{why}")


def verify(*, load: bool = False) -> None:
    """Check the undocumented names; see :func:`problems`.

    Raises:
        IncompatibleLibrary: the first that is missing or has another shape.
    """
    for problem in problems(load=load):
        raise problem


def _caller() -> tuple[str, int]:
    """Module and line of a declaration."""
    frame = sys._getframe(2)
    return frame.f_globals["__name__"], frame.f_lineno


@functools.cache
def _installed(distribution: str) -> tuple[int, ...]:
    """Empty, and so older than any, where a deployment has left the packages' metadata out, or a broken upgrade some
    without a version (None, or a KeyError)."""
    try:
        return _version(importlib.metadata.version(distribution) or "")
    except (importlib.metadata.PackageNotFoundError, KeyError):
        return ()


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:2] if part.isdigit())
