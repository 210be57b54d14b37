"""Switches a protection off in this process: the replacements of qa/mutants, made in the functions as they stand.

A function keeps its identity and gets the code of the changed source, so whoever has imported it sees the change. Of a
module's constants (the SQL) only those see it who ask the module.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qa.mutants.catalogue import MUTANTS
from qa.mutants.mutant import ROOT, mutated

_PACKAGE = ROOT / "reliable_jobs"
_Codes = dict[tuple[str, ...], types.CodeType]


def _codes(code: types.CodeType, path: tuple[str, ...] = ()) -> _Codes:
    """The functions of a module and of its classes, by name."""
    found: _Codes = {}
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType) and not constant.co_name.startswith("<"):
            here = (*path, constant.co_name)
            found[here] = constant
            found.update(_codes(constant, here))
    return found


def _same(one: types.CodeType, other: types.CodeType) -> bool:
    """The same but for line numbers."""
    if one.co_code != other.co_code or one.co_names != other.co_names or len(one.co_consts) != len(other.co_consts):
        return False
    return all(
        _same(a, b)
        if isinstance(a, types.CodeType) and isinstance(b, types.CodeType)
        else a == b and type(a) is type(b)
        for a, b in zip(one.co_consts, other.co_consts, strict=True)
    )


def _function(module: types.ModuleType, path: tuple[str, ...]) -> types.FunctionType | None:
    """The live function; None for a class, and for what is made anew within a function."""
    found: Any = module
    for name in path:
        found = vars(found).get(name) if isinstance(found, (type, types.ModuleType)) else None
    if isinstance(found, property):
        found = found.fget
    found = getattr(found, "__func__", found)
    while hasattr(found, "__wrapped__"):
        found = found.__wrapped__
    return found if isinstance(found, types.FunctionType) else None


@contextlib.contextmanager
def switched_off(name: str) -> Iterator[None]:
    """The named protection of qa/mutants is off for a time.

    Raises:
        ValueError: the change lies neither within functions nor in constants.
    """
    mutant = next(mutant for mutant in MUTANTS if mutant.name == name)
    before: list[tuple[object, str, Any]] = []
    for path, text in mutated(mutant, _PACKAGE).items():
        module = importlib.import_module(".".join(path.relative_to(_PACKAGE.parent).with_suffix("").parts))
        before += [*_changed_functions(module, path, text), *_changed_constants(module, path, text)]
    if not before:
        raise ValueError(f"{name}: nothing would be changed")
    try:
        yield
    finally:
        for owner, attribute, value in before:
            setattr(owner, attribute, value)


def _changed_functions(module: types.ModuleType, path: Path, text: str) -> Iterator[tuple[object, str, Any]]:
    old = _codes(compile(path.read_text(), str(path), "exec"))
    for names, code in _codes(compile(text, str(path), "exec")).items():
        function = _function(module, names)
        if function is not None and not _same(code, old[names]):
            was = function.__code__
            function.__code__ = code
            yield function, "__code__", was


def _changed_constants(module: types.ModuleType, path: Path, text: str) -> Iterator[tuple[object, str, Any]]:
    old = {ast.dump(statement) for statement in ast.parse(path.read_text()).body}
    for statement in ast.parse(text).body:
        if isinstance(statement, ast.Assign) and ast.dump(statement) not in old:
            names = dict(vars(module))
            exec(compile(ast.Module([statement], []), str(path), "exec"), names)
            for target in statement.targets:
                assert isinstance(target, ast.Name)
                yield module, target.id, getattr(module, target.id)
                setattr(module, target.id, names[target.id])
