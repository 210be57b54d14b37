"""What another library has put over a library's function or class does not keep a site from starting."""

from __future__ import annotations

import functools
import importlib
import logging
import subprocess
import sys
from collections.abc import Callable
from types import FunctionType
from typing import Any

import pytest

from reliable_jobs.compat import register
from reliable_jobs.compat.name import Name
from tests.compat.test_compat import NAMES as ALL
from tests.compat.test_compat import ROOT, owner_of, skip_unless_here

OF_FUNCTIONS = [(library, name) for library, _, name in ALL if name.inside or name.takes]
ENV = {"DJANGO_SETTINGS_MODULE": "tests.settings", "PATH": ""}
IDS = [f"{library.title} {name.name}" for library, name in OF_FUNCTIONS]


def with_wraps(function: Any) -> Any:
    @functools.wraps(function)
    def traced(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return traced


def without_wraps(function: Any) -> Any:
    def traced(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return traced


def with_names_copied(function: Any) -> Any:
    """As ``functools.wraps`` does it, but for the way back."""
    traced = with_wraps(function)
    del traced.__wrapped__
    return traced


class Proxy:
    """An object that is called, and hands on every attribute."""

    def __init__(self, function: Any) -> None:
        self.function = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["function"], name)


class Endless:
    """Answers every attribute, as a mock does."""

    def __init__(self, function: Any) -> None: ...

    def __getattr__(self, name: str) -> Any:
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...


class Slots:
    """Has neither attributes nor a ``__dict__``."""

    __slots__ = ("function",)

    def __init__(self, function: Any) -> None:
        self.function = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(f"no {name}")


def with_code_rewritten(function: Any) -> Any:
    """As ddtrace does it: the same function, whose code calls a wrapper that is one of its constants."""
    code = without_wraps(function).__code__.replace(co_consts=(None, without_wraps), co_freevars=())
    return FunctionType(code, vars(importlib.import_module(function.__module__)))


class LikeWrapt(Proxy):
    """Claims to be what it wraps."""

    def __init__(self, function: Any) -> None:
        super().__init__(function)
        self.__wrapped__ = function

    # As wrapt has it; for mypy a property can't stand for the attribute of object.
    @property
    def __class__(self) -> Any:  # type: ignore[override]
        return type(self.function)


def twice_as_wrapt(function: Any) -> Any:
    return LikeWrapt(LikeWrapt(function))


WRAPPERS: list[Callable[[Any], Any]] = [
    *(with_wraps, without_wraps, with_names_copied, Proxy, Endless, Slots),
    *(with_code_rewritten, functools.partial, twice_as_wrapt),
]


@pytest.mark.parametrize("wrap", WRAPPERS, ids=lambda wrap: wrap.__name__)
def test_no_wrapper_around_a_function_is_reported(wrap: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    reported = []
    for library, name in OF_FUNCTIONS:
        try:
            skip_unless_here(library, name)
        except pytest.skip.Exception:
            continue
        owner, attribute = owner_of(name)
        with monkeypatch.context() as patched:
            patched.setattr(owner, attribute, wrap(_function(vars(owner)[attribute])))
            reported.append(name.problem())
    assert len(reported) > 50
    assert set(reported) == {None}


def _function(value: Any) -> Any:
    value = getattr(value, "fget", None) or getattr(value, "__func__", None) or value
    return value


@pytest.mark.parametrize(("library", "name"), OF_FUNCTIONS, ids=IDS)
def test_below_a_wrapper_a_change_is_reported(
    library: register.Library, name: Name, monkeypatch: pytest.MonkeyPatch
) -> None:
    skip_unless_here(library, name)
    owner, attribute = owner_of(name)
    other = FunctionType((lambda other: None).__code__, vars(importlib.import_module(name.module)))
    monkeypatch.setattr(owner, attribute, with_wraps(other))
    assert name.problem()


def test_a_class_that_another_library_has_replaced_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    name = next(name for _, name in OF_FUNCTIONS if name.place == "celery.app.trace:TraceInfo.__init__")
    for other in (lambda *args: None, Slots(None), type("TraceInfo", (), {})):
        monkeypatch.setattr("celery.app.trace.TraceInfo", other)
        assert name.problem() is None


def test_what_is_left_alone_is_logged_for_a_debugger(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    name = next(name for _, name in OF_FUNCTIONS if name.place == "celery.app.trace:build_tracer")
    monkeypatch.setattr("celery.app.trace.build_tracer", without_wraps(None))
    with caplog.at_level(logging.DEBUG, "reliable_jobs.compat"):
        name.problem()
    assert [record.levelname for record in caplog.records] == ["DEBUG"]
    assert "celery.app.trace:build_tracer has been replaced (function of tests.compat.test_wrapped)" in caplog.text


def test_without_other_libraries_every_name_is_verified() -> None:
    """Nothing of the hosts' own is taken for a wrapper: that would be left alone in every version."""
    code = """
import logging, django
logging.basicConfig(level=logging.DEBUG)
django.setup()
from tools import undocumented
undocumented.libraries()
from reliable_jobs.compat import register
print(list(register.problems(load=True)))
"""
    done = subprocess.run([sys.executable, "-c", code], env=ENV, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    assert "has been replaced" not in done.stderr
