"""The register of undocumented names: verified at the start, complete, told in the docs, and used nowhere else."""

from __future__ import annotations

import importlib
import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import FunctionType, SimpleNamespace
from typing import Any

import pytest

from reliable_jobs.compat import register
from reliable_jobs.worker import bootstrap
from tools import pins, undocumented

ROOT = undocumented.ROOT
LIBRARIES = undocumented.libraries()
NAMES = [(library, use, name) for library in LIBRARIES for use in library.uses for name in use.names]
IDS = [f"{library.title} {name.name}" for library, _, name in NAMES]


def test_every_undocumented_name_is_as_it_was_read() -> None:
    assert [str(problem) for problem in register.problems(load=True)] == []


@pytest.mark.parametrize("version", [lambda name: None, lambda name: {}[name]], ids=["None", "KeyError"])
def test_metadata_without_a_version_keep_no_site_from_starting(version: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(register.importlib.metadata, "version", version)
    register._installed.cache_clear()
    try:
        register.verify()
        assert "of an unknown version" in str(LIBRARIES[0].error("gone"))
    finally:
        register._installed.cache_clear()


@pytest.mark.parametrize(("library", "use", "name"), NAMES, ids=IDS)
def test_a_name_that_is_gone_is_reported(
    library: register.Library, use: register.Use, name: register.Name, monkeypatch: pytest.MonkeyPatch
) -> None:
    skip_unless_here(library, name)
    gone(name, monkeypatch)
    said = [str(problem) for problem in register.problems(load=True) if f": {name.name}: " in str(problem)]
    assert said
    assert all(f"{library.title} {library.installed()}: " in one and library.tried in one for one in said)


@pytest.mark.parametrize(
    ("library", "use", "name"),
    [row for row in NAMES if row[2].takes],
    ids=[one for one, row in zip(IDS, NAMES, strict=True) if row[2].takes],
)
def test_a_function_that_takes_something_else_is_reported(
    library: register.Library, use: register.Use, name: register.Name, monkeypatch: pytest.MonkeyPatch
) -> None:
    skip_unless_here(library, name)
    replace(name, monkeypatch, lambda other: None)
    assert "takes other, not " in str(name.problem())


@pytest.mark.parametrize("library", LIBRARIES, ids=lambda library: library.title)
def test_every_declaration_names_its_reason_and_its_tests(library: register.Library) -> None:
    files = {path.stem for path in (ROOT / "tests").rglob("test_*.py")}
    for use in library.uses:
        assert use.why.endswith((".", ";", ":")), use.what
        assert use.tests, use.what
        assert set(use.tests) <= files, use.what


def test_the_page_is_what_the_register_says() -> None:
    assert undocumented.PAGE.read_text() == undocumented.page(), "run: python tools/undocumented.py"


def test_the_pins_run_every_test_that_the_register_names() -> None:
    named = {test for library in LIBRARIES for use in library.uses for test in use.tests}
    assert named <= {Path(file).stem for file in pins.files()}


def test_an_import_that_fails_names_the_version() -> None:
    library = register.Library("Celery", "celery", tried="0.1")
    register.LIBRARIES.remove(library)
    with (
        pytest.raises(register.IncompatibleLibrary, match=r"Celery \d+\.\d+.* tried with Celery 0\.1\."),
        library.importing(),
    ):
        importlib.import_module("celery.no_such_module")


@pytest.mark.parametrize("wait", ["wait_selector", "wait_c"])
def test_psycopg_tells_whether_it_waits_in_c(wait: str) -> None:
    if importlib.util.find_spec("psycopg_binary") is None:
        pytest.skip("psycopg has no C implementation here")
    code = "import psycopg.waiting; from reliable_jobs.compat.psycopg import waits_in_c; print(waits_in_c())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PSYCOPG_WAIT_FUNC": wait},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == str(wait == "wait_c")


def skip_unless_here(library: register.Library, name: register.Name) -> None:
    if name.since and register._version(library.installed()) < register._version(name.since):
        pytest.skip(f"not in {library.title} {library.installed()}")
    if name.rare:
        pytest.importorskip(name.module)


def gone(name: register.Name, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the name away from its library: the object itself, or the code that knows it."""
    if name.inside:
        replace(name, monkeypatch, lambda *args, **kwargs: None)
    else:
        owner, attribute = owner_of(name)
        for one in owner.__mro__ if isinstance(owner, type) else (owner,):
            if one is not object and attribute in vars(one):
                monkeypatch.delattr(one, attribute)


def replace(name: register.Name, monkeypatch: pytest.MonkeyPatch, by: Any) -> None:
    """As if another version of the library had this function: its globals are those of the library's module."""
    owner, attribute = owner_of(name)
    monkeypatch.setattr(owner, attribute, FunctionType(by.__code__, vars(importlib.import_module(name.module))))


def owner_of(name: register.Name) -> tuple[Any, str]:
    module, _, path = name.place.partition(":")
    *parents, attribute = path.split(".")
    owner: Any = importlib.import_module(module)
    for parent in parents:
        owner = getattr(owner, parent)
    if isinstance(owner, type):
        owner = next(one for one in owner.__mro__ if attribute in vars(one))
    return owner, attribute


def test_the_proposals_name_what_they_would_remove() -> None:
    functions = {undocumented.name_of(use) for library in LIBRARIES for use in library.uses}
    page = (ROOT / "docs" / "upstream.md").read_text()
    # The fourth is about a fault that nothing here works around.
    for proposal, count in zip(page.split("\n## ")[1:], (5, 3, 2, 0, 1), strict=True):
        assert len(functions & set(re.findall(r"`(\w+)`", proposal))) >= count, proposal.partition("\n")[0]


def test_django_does_not_start_without_a_name_and_says_so() -> None:
    code = "from celery.app.base import Celery; del Celery.thread_oid; import django; django.setup()"
    env = {"DJANGO_SETTINGS_MODULE": "tests.settings", "PATH": ""}
    done = subprocess.run([sys.executable, "-c", code], env=env, cwd=ROOT, capture_output=True, text=True, check=False)
    said = done.stderr.splitlines()[-1]
    assert done.returncode == 1
    assert "IncompatibleLibrary: reliable_jobs can't work with Celery" in said
    assert "Celery.thread_oid" in said


def test_a_worker_does_not_start_without_a_name_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("celery.worker.state.should_stop")
    with pytest.raises(SystemExit, match=r"can't work with Celery .*state\.should_stop.*Install one of these"):
        bootstrap._on_worker_init(SimpleNamespace(app=None))
