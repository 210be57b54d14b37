"""What type checkers make of a project's tasks and of their calls, with and without the package celery-types."""

from __future__ import annotations

import csv
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = next(folder for folder in Path(__file__).resolve().parents if (folder / "pyproject.toml").exists())
PROJECT = Path(__file__).resolve().parent / "typed_project"
HOW_TO = (ROOT / "docs/how-to.md").read_text()
(EXAMPLE,) = re.findall(r"^## Have a type checker find wrong calls\n.*?^```python\n(.*?)^```", HOW_TO, re.M | re.S)
ERROR = re.compile(r"  # error( with celery-types)?$")
#: Elsewhere the checkers are not installed, nor is the wheel.
IN_TOX = os.environ.get("TOX_ENV_NAME") == "types"
needs_checkers = pytest.mark.skipif(
    not IN_TOX and not all(map(importlib.util.find_spec, ("basedpyright", "mypy", "celery-stubs"))),
    reason="needs the environment that `tox -e types` makes",
)

Lines = set[tuple[str, int]]


@pytest.fixture(scope="module")
def without_celery_types(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that holds what this one has, but for celery-types."""
    installed = Path(sysconfig.get_path("purelib"))
    (record,) = [one for one in importlib.metadata.files("celery-types") or () if one.name == "RECORD"]
    with record.locate().open() as rows:
        hidden = {Path(path).parts[0] for path, *_ in csv.reader(rows)}
    assert "celery-stubs" in hidden
    directory = tmp_path_factory.mktemp("without_celery_types")
    venv.create(directory, symlinks=True)
    (packages,) = directory.glob("lib/python*/site-packages")
    for path in installed.iterdir():
        if path.name not in hidden:
            (packages / path.name).symlink_to(path)
    return directory / "bin/python"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Outside the checkout, whose own settings for mypy are not a project's. It has the example of the docs, too."""
    project = tmp_path / "project"
    shutil.copytree(PROJECT, project)
    (project / "shop/how_to.py").write_text(f"from __future__ import annotations\n\n{EXAMPLE}")
    return project


def run(project: Path, *command: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MYPYPATH")}
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=project, env=environment, capture_output=True, text=True, timeout=360
    )
    assert done.returncode == 1, f"{command}: exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def by_mypy(project: Path, python: Path) -> Lines:
    (project / "mypy.ini").write_text("[mypy]\nstrict = true\n")
    said = run(project, "mypy", "shop", "--python-executable", str(python), "--no-error-summary")
    print(said)
    return {(Path(file).name, int(line)) for file, line in re.findall(r"^(\S+\.py):(\d+): error: ", said, re.M)}


def by_pyright(project: Path, python: Path) -> Lines:
    (project / "pyrightconfig.json").write_text('{"typeCheckingMode": "strict", "include": ["shop"]}')
    found = json.loads(run(project, "basedpyright", "--pythonpath", str(python), "--outputjson"))["generalDiagnostics"]
    print(
        *(f"{Path(one['file']).name}:{one['range']['start']['line'] + 1}: {one['message']}" for one in found), sep="\n"
    )
    return {(Path(one["file"]).name, one["range"]["start"]["line"] + 1) for one in found}


def marked(project: Path, *, celery_types: bool) -> Lines:
    lines = set()
    for path in (project / "shop").glob("*.py"):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if (match := ERROR.search(line)) and (celery_types or not match[1]):
                lines.add((path.name, number))
    assert {name for name, _ in lines} == {"calls.py", "how_to.py"}
    return lines


@needs_checkers
@pytest.mark.parametrize("check", [by_mypy, by_pyright])
def test_checkers_find_every_wrong_call_with_celery_types(check: Callable[[Path, Path], Lines], project: Path) -> None:
    assert check(project, Path(sys.executable)) == marked(project, celery_types=True)


@needs_checkers
@pytest.mark.parametrize("check", [by_mypy, by_pyright])
def test_checkers_find_every_wrong_call_without_celery_types(
    check: Callable[[Path, Path], Lines], project: Path, without_celery_types: Path
) -> None:
    # Pyright reads Celery's own source.
    expected = marked(project, celery_types=check is by_pyright)
    assert check(project, without_celery_types) == expected


def test_celery_finds_the_projects_tasks_and_runs_them() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FOUND_AND_RUN],
        cwd=PROJECT,
        env={**os.environ, "DJANGO_SETTINGS_MODULE": "tests.settings", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=360,
    )
    assert done.returncode == 0, done.stderr
    *lines, result = done.stdout.splitlines()
    names = ("build_report", "charge", "clean_up", "deliver", "fetch", "send_receipt", "ship")
    assert lines == sorted(
        ["shop.download", "shop.greet", "shop.invoice", "shop.thumbnail", *(f"shop.tasks.{name}" for name in names)]
    )
    assert result == "receipt 7 ada"


FOUND_AND_RUN = """
import pickle, sys
import django
from celery import Celery

sys.path.insert(0, ".")
django.setup()
app = Celery("shop", set_as_current=True)
app.conf.task_always_eager = True
app.autodiscover_tasks(["shop"], force=True)
from shop import tasks
for one in (tasks.invoice, tasks.thumbnail, tasks.download):
    app.register_task(one)
ours = [task for name, task in sorted(app.tasks.items()) if name.startswith("shop.")]
for task in ours:
    assert pickle.loads(pickle.dumps(task)) is task, task
    print(task.name)
print(app.tasks["shop.tasks.send_receipt"].delay(7, copy_to="ada").get())
"""


@pytest.mark.skipif(not IN_TOX, reason="elsewhere the checkout is installed, not the wheel")
def test_the_wheel_has_the_translations() -> None:
    installed = {str(path) for path in importlib.metadata.files("reliable-jobs") or ()}
    written = {str(path.relative_to(ROOT)) for path in (ROOT / "reliable_jobs/locale").rglob("django.*")}
    assert {Path(path).suffix for path in written} == {".po", ".mo"}
    assert written <= installed
