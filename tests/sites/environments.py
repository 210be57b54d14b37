"""The wheel of this checkout, and a fresh environment for each set of versions. Kept in var/sites between runs."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from tests.sites.site import Site
from tools import interpreters

ROOT = Path(__file__).resolve().parent.parent.parent
FOLDER = ROOT / "var" / "sites"

_build_lock = threading.Lock()
_wheels: list[Path] = []


class NoEnvironment(RuntimeError):
    """The interpreter or a package of the site can't be had here."""


def wheel() -> Path:
    """The wheel, built once per run.

    Raises:
        NoEnvironment: it can't be built.
    """
    with _build_lock:
        if not _wheels:
            folder = FOLDER / "dist" / str(os.getpid())
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            uv = _uv()
            if uv:
                _run([uv, "build", "-q", "--wheel", "-o", str(folder), str(ROOT)])
            else:
                _run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(folder), str(ROOT)])
            _wheels.extend(folder.glob("*.whl"))
        return _wheels[0]


def forget_wheel() -> None:
    with _build_lock:
        for built in _wheels:
            shutil.rmtree(built.parent, ignore_errors=True)
        _wheels.clear()


@contextlib.contextmanager
def environment(site: Site) -> Iterator[Path]:
    """The bin directory of an environment with the site's versions and the wheel. It is not changed inside the block.

    Raises:
        NoEnvironment: no such interpreter, or the installation failed.
    """
    found = interpreters.find()
    version = tuple(int(part) for part in site.python.split("."))
    python = found.get((version[0], version[1]))
    if python is None:
        raise NoEnvironment(f"no Python {site.python} was found")
    package = f"reliable-jobs[{','.join(site.extras)}]" if site.extras else "reliable-jobs"
    asked = sorted([*site.requirements, package])
    folder = FOLDER / "environments" / hashlib.sha256(repr((python, asked)).encode()).hexdigest()[:16]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{folder}.users", "w") as users:
        with open(f"{folder}.install", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            built = hashlib.sha256(wheel().read_bytes()).hexdigest()
            stamp = folder / "made-from"
            if not (stamp.exists() and stamp.read_text() == built):
                fcntl.flock(users, fcntl.LOCK_EX)  # another run may use it with its own wheel
                _install(folder, python, site.requirements, package)
                stamp.write_text(built)
            fcntl.flock(users, fcntl.LOCK_SH)
        yield folder / "bin"


def _install(folder: Path, python: str, requirements: tuple[str, ...], package: str) -> None:
    """Packages first and the wheel after them in one resolution, as ``pip install`` does it for a user."""
    ours = f"{package} @ {wheel().as_uri()}"
    uv = _uv()
    if uv:
        _run([uv, "venv", "-q", "--clear", "--python", python, str(folder)])
        again = ["--reinstall-package", "reliable-jobs"]
        _run([uv, "pip", "install", "-q", *again, "--python", str(folder / "bin/python"), *requirements, ours])
    else:
        _run([python, "-m", "venv", "--clear", str(folder)])
        _run([str(folder / "bin/python"), "-m", "pip", "install", "-q", *requirements, ours])


def _uv() -> str | None:
    beside = Path(sys.executable).with_name("uv")
    developers = ROOT / ".venv" / "bin" / "uv"
    return next((str(path) for path in (beside, developers) if path.exists()), None) or shutil.which("uv")


def _run(argv: list[str]) -> None:
    env = interpreters.uv_like_pip(os.environ)
    done = subprocess.run(
        argv,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
    )
    if done.returncode:
        raise NoEnvironment(f"{' '.join(argv)}\n{done.stdout[-3000:]}")
