"""Makes or refreshes a virtual environment: python3 tools/venv.py DIRECTORY PIP-ARGUMENT...

Does nothing if the directory was made with the same arguments from the same requirement files. Uses uv where uv reaches
the package index, because it is several times faster, and otherwise pip. Standard library only.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import interpreters

ROOT = Path(__file__).resolve().parent.parent


def stamp_of(arguments: list[str], python: str) -> str:
    digest = hashlib.sha256(repr((arguments, python)).encode())
    for path in [*sorted(ROOT.glob("requirements*.txt")), ROOT / "pyproject.toml"]:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def main() -> int:
    directory, arguments = Path(sys.argv[1]), sys.argv[2:]
    found = interpreters.find()
    if not found:
        print("reliable_jobs needs Python 3.10 or newer; none was found on PATH or under pyenv.", file=sys.stderr)
        return 1
    here = sys.version_info[:2]
    python = sys.executable if here in found else found[max(found)]

    stamp, wanted = directory / ".made-from", stamp_of(arguments, python)
    if stamp.exists() and stamp.read_text() == wanted:
        return 0
    print(f"{directory}: installing with {python}", flush=True)
    shutil.rmtree(directory, ignore_errors=True)
    if subprocess.run([python, "-m", "venv", str(directory)], stdin=subprocess.DEVNULL).returncode:
        print(f"{python} cannot make virtual environments (on Debian: apt-get install python3-venv).", file=sys.stderr)
        return 1
    inside = directory / "bin" / "python"
    env = {**interpreters.uv_like_pip(os.environ), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}

    def run(*words: str) -> bool:
        return subprocess.run([str(inside), "-m", *words], env=env, stdin=subprocess.DEVNULL).returncode == 0

    if not (
        (run("pip", "install", "-q", "uv") and run("uv", "pip", "install", "-q", "--python", str(inside), *arguments))
        or run("pip", "install", "-q", *(word for word in arguments if word != "tox-uv"))
    ):
        print(f"{directory}: the installation failed, see above.", file=sys.stderr)
        return 1
    stamp.write_text(wanted)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
