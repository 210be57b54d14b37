"""Which Python interpreters this machine has. Standard library only."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

SUPPORTED = [(3, minor) for minor in range(10, 15)]


def find() -> dict[tuple[int, int], str]:
    """A working interpreter for each supported version, by (major, minor)."""
    found: dict[tuple[int, int], str] = {}
    # Not by HOME, which may be an empty one: the account's own directory.
    pyenv = Path(pwd.getpwuid(os.getuid()).pw_dir, ".pyenv", "versions")
    candidates = [sys.executable, *(str(path) for path in sorted(pyenv.glob("3.*/bin/python"), reverse=True))]
    candidates += [shutil.which(f"python{major}.{minor}") or "" for major, minor in SUPPORTED]
    candidates += [shutil.which("python3") or ""]
    for candidate in filter(None, candidates):
        version = _version(candidate)
        if version in SUPPORTED:
            found.setdefault(version, candidate)
    return found


def _version(python: str) -> tuple[int, int] | None:
    """The version of an interpreter that can make virtual environments, else None."""
    asked = "import sys, ensurepip, venv; print(*sys.version_info[:2])"
    try:
        said = subprocess.run([python, "-c", asked], capture_output=True, text=True, timeout=20)
        major, minor = said.stdout.split()
    except (OSError, subprocess.TimeoutExpired, ValueError):
        return None  # a pyenv shim without a version behind it, a broken installation
    return int(major), int(minor)


def uv_like_pip(environ: Mapping[str, str]) -> dict[str, str]:
    """An environment in which uv uses the package index that pip was told to use, and fetches no interpreter."""
    env = {**environ, "UV_PYTHON_DOWNLOADS": "never", "UV_PYTHON_PREFERENCE": "only-system"}
    for pip_name, uv_name in {"PIP_INDEX_URL": "UV_DEFAULT_INDEX", "PIP_EXTRA_INDEX_URL": "UV_INDEX"}.items():
        if environ.get(pip_name):
            env.setdefault(uv_name, environ[pip_name])
    return env
