"""Deployments that leave something out: docstrings (python -OO), or the sources themselves."""

from __future__ import annotations

import compileall
import shutil
import subprocess
import sys
from pathlib import Path

from tests.compat.test_compat import ROOT

ENV = {"DJANGO_SETTINGS_MODULE": "tests.settings", "PATH": "", "PYTHONPATH": str(ROOT)}


def test_names_are_verified_without_docstrings() -> None:
    code = """
from tools import undocumented
undocumented.libraries()
from celery.app.base import Celery
del Celery.thread_oid
from reliable_jobs.compat import register
print(*register.problems(load=True))
"""
    done = subprocess.run(
        [sys.executable, "-OO", "-c", code], env=ENV, cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "Celery.thread_oid: celery.app.base:Celery.thread_oid is not there (no thread_oid). " in done.stdout


def test_django_starts_without_the_sources(tmp_path: Path) -> None:
    package = tmp_path / "reliable_jobs"
    shutil.copytree(ROOT / "reliable_jobs", package, ignore=shutil.ignore_patterns("__pycache__"))
    assert compileall.compile_dir(package, quiet=1, legacy=True)
    for source in package.rglob("*.py"):
        source.unlink()
    code = """
import importlib, pkgutil, django
django.setup()
import reliable_jobs
for module in pkgutil.walk_packages(reliable_jobs.__path__, "reliable_jobs."):
    importlib.import_module(module.name)
from reliable_jobs.compat import register
print(reliable_jobs.__file__, list(register.problems(load=True)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=ENV, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout == f"{package / '__init__.pyc'} []\n"
