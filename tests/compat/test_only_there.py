"""No undocumented name of a library outside compat/: neither an import, nor an attribute, nor its name as a text."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

from tools import undocumented

PACKAGE = undocumented.PACKAGE
LIBRARIES = {"amqp", "billiard", "celery", "django", "kombu", "psycopg", "psycopg_pool", "redis", "vine"}
#: Modules that the guides or the API references describe, with all below them. Celery's "internals reference" is none.
DOCUMENTED = (
    *("amqp", "kombu", "psycopg", "psycopg_pool"),
    *("celery.app.task", "celery.contrib", "celery.events", "celery.exceptions", "celery.result", "celery.schedules"),
    *("celery.signals", "celery.states", "celery.worker.consumer", "celery.worker.request", "celery.worker.state"),
    *("django.apps", "django.conf", "django.contrib.admin", "django.contrib.auth", "django.contrib.messages"),
    *("django.core", "django.db"),
    *(
        "django.dispatch",
        "django.forms",
        "django.http",
        "django.template",
        "django.test",
        "django.urls",
        "django.utils",
        "django.views.decorators",
    ),
)
#: Of them, what they do not describe.
UNDOCUMENTED = ("django.db.backends", "django.db.models.base", "django.db.models.constants", "django.db.models.sql")
#: The modules themselves, without what is below them. Celery's guide on canvas tells of ``celery.canvas``; checkers of
#: types do not find its ``Signature`` in the package ``celery``, which loads it when it is asked for.
PACKAGES = {
    *("django.contrib", "celery", "celery.app", "celery.canvas", "celery.worker"),
    *("django", "django.db.backends.signals"),
}
#: Names with an underscore that are documented: https://docs.djangoproject.com/en/stable/ref/models/meta/ and others.
SAID = {"_meta", "_state", "_default_manager", "_base_manager", "_exit", "_replace"}
#: Attributes of the register that are words of their own, and mean something else outside, so this test can't tell.
WORDS = {
    "all",
    "as_dict",
    "box",
    "check",
    "chain",
    "channels",
    "connection",
    "copy",
    "events",
    "as_uri",
    "forget",
    "groups",
    "inc",
    "persistent",
    "lock",
    "loop",
    "settings",
    "soft_time_limit",
    "start",
    "time_limit",
    "wait",
    "wrapped",
}
WORDS |= {"_buckets", "_connection", "_transport", "callbacks", "errbacks", "receivers"}


def files() -> list[Path]:
    return [file for file in sorted(PACKAGE.rglob("*.py")) if file.relative_to(PACKAGE).parts[0] != "compat"]


@functools.cache
def own_names() -> set[str]:
    """What this package itself calls so."""
    names: set[str] = set()
    for file in files():
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                names.add(node.name)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                names.add(node.attr)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names.add(node.id)
            elif isinstance(node, ast.alias):
                names.add(node.asname or node.name)
    return names


REGISTERED = {
    name.attribute
    for library in undocumented.libraries()
    for use in library.uses
    for name in use.names
    if name.attribute not in WORDS
}


def is_documented(module: str) -> bool:
    if module.partition(".")[0] not in LIBRARIES or module in PACKAGES:
        return True
    below = [f"{one}." for one in DOCUMENTED]
    inside = [f"{one}." for one in UNDOCUMENTED]
    return f"{module}.".startswith(tuple(below)) and not f"{module}.".startswith(tuple(inside))


def found_in(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            if not is_documented(node.module):
                yield f"line {node.lineno}: from {node.module} import …"
            elif node.module.partition(".")[0] in LIBRARIES:
                for alias in node.names:
                    if alias.name.startswith("_") or alias.name in REGISTERED:
                        yield f"line {node.lineno}: from {node.module} import {alias.name}"
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if not is_documented(alias.name):
                    yield f"line {node.lineno}: import {alias.name}"
        elif isinstance(node, ast.Attribute):
            private = node.attr.startswith("_") and not node.attr.endswith("__")
            if (private and node.attr not in own_names() | SAID) or node.attr in REGISTERED:
                yield f"line {node.lineno}: {ast.unparse(node)}"
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name in REGISTERED:
            yield f"line {node.lineno}: def {node.name}"
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in REGISTERED:
            yield f"line {node.lineno}: {node.value!r}"


@pytest.mark.parametrize("file", files(), ids=lambda file: file.relative_to(PACKAGE).as_posix())
def test_a_file_uses_no_undocumented_name(file: Path) -> None:
    assert list(found_in(ast.parse(file.read_text()))) == []


@pytest.mark.parametrize(
    "code",
    [
        "from celery._state import current_app",
        "from celery.app.trace import build_tracer",
        "from celery import _state",
        "from celery.concurrency import prefork",
        "import celery.utils.time",
        "import billiard.pool",
        "from django.db.models.sql import Query",
        "from kombu.serialization import prepare_accept_content",
        "connections[alias].atomic_blocks",
        "getattr(task, '_orig_run', None)",
        "connection._savepoint = print",
        "driver._no_such_name_of_ours",
        "class Result:\n    def _get_task_meta(self): ...",
    ],
)
def test_an_undocumented_name_is_found(code: str) -> None:
    assert list(found_in(ast.parse(code)))


def test_what_is_documented_is_let_pass() -> None:
    code = """
from celery import bootsteps, current_app, signals
from celery.worker.request import Request
from django.db import connections, transaction
from kombu.utils.url import parse_url
model._meta.db_table, self._stop, consumer.task_buckets
"""
    assert not list(found_in(ast.parse(code)))
