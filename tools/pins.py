"""Run the tests that pin undocumented names of Celery, kombu, py-amqp, Django and psycopg: the files that the
declarations in reliable_jobs/compat/ name. tox.ini runs it on servers with every supported pair of Celery and Django.

    python -m tools.pins [PYTEST-ARGUMENT...]
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tools import undocumented

ROOT = Path(__file__).resolve().parent.parent


def files() -> list[str]:
    """The test files, relative to the project's directory."""
    named = {test for library in undocumented.libraries() for use in library.uses for test in use.tests}
    paths = [path.relative_to(ROOT) for folder in ("tests", "qa") for path in (ROOT / folder).rglob("test_*.py")]
    return sorted(str(path) for path in paths if path.stem in named)


if __name__ == "__main__":
    raise SystemExit(subprocess.call([sys.executable, "-m", "pytest", *files(), *sys.argv[1:]], cwd=ROOT))
