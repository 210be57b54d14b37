"""The sdist of the installed Celery, and its ``t/`` unpacked with our fixtures behind its own."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import celery

ROOT = Path(__file__).resolve().parent.parent.parent
FOLDER = ROOT / "var" / "contract"

#: Behind the suite's own conftest: its worker is a thread of the tests' process, ours is a process.
_FIXTURES = "\nfrom qa.contract.fixtures import *\n"


class NoSuite(RuntimeError):
    """The tests of the installed Celery can't be had here."""


def unpacked() -> Path:
    """The folder that holds ``t/`` of the installed version; fetched once.

    Raises:
        NoSuite: the registry has no sdist of this version, or the sdist has no such tests.
    """
    folder = FOLDER / celery.__version__
    if not (folder / "theirs" / "t").exists():
        _unpack(_fetched(), folder)
    shutil.rmtree(folder / "t", ignore_errors=True)
    shutil.copytree(folder / "theirs" / "t", folder / "t")
    with (folder / "t" / "integration" / "conftest.py").open("a") as conftest:
        conftest.write(_FIXTURES)
    return folder


def _fetched() -> Path:
    kept = FOLDER / f"celery-{celery.__version__}.tar.gz"
    if kept.exists():
        return kept
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        argv = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", "celery", "-d", folder]
        done = subprocess.run(
            [*argv, f"celery=={celery.__version__}"], stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
        found = list(Path(folder).glob("celery-*.tar.gz"))
        if done.returncode or not found:
            raise NoSuite(f"The sdist of Celery {celery.__version__} can't be fetched:\n{done.stderr[-2000:]}")
        shutil.move(found[0], kept)
    return kept


def _unpack(sdist: Path, folder: Path) -> None:
    """Its ``t/`` alone: the sdist holds the package too, which would stand before the installed one."""
    theirs = folder / "theirs"
    with tarfile.open(sdist) as archive:
        prefix = f"celery-{celery.__version__}/"
        wanted = ("t/__init__.py", "t/integration/", "t/canvas_helpers.py", "t/skip.py")
        for member in archive.getmembers():
            name = member.name.removeprefix(prefix)
            source = archive.extractfile(member) if member.isfile() and name.startswith(wanted) else None
            if source is not None:
                target = theirs / name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(source.read())
    if not (theirs / "t" / "integration" / "conftest.py").exists():
        raise NoSuite(f"{sdist.name} has no t/integration.")
