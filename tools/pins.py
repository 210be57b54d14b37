"""Run the tests that pin undocumented names of Celery, kombu, py-amqp, Django and psycopg: the files that the
declarations in reliable_jobs/compat/ name. tox.ini runs it on servers with every supported pair of Celery and Django.

    python -m tools.pins [PYTEST-ARGUMENT...]
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tools import undocumented

ROOT = Path(__file__).resolve().parent.parent
ROW = re.compile(r"^\| (?:Celery|Django|kombu|py-amqp): .*\| ([^|]*) \|$", re.M)


def files() -> list[str]:
    """The test files, relative to the project's directory."""
    named = {test for library in undocumented.libraries() for use in library.uses for test in use.tests}
    # TODO: those that are not in compat/ yet.
    cells = ROW.findall((ROOT / "docs" / "architecture.md").read_text())
    named |= {name for cell in cells for name in re.findall(r"`(test_\w+)\.py`", cell)}
    paths = [path.relative_to(ROOT) for folder in ("tests", "qa") for path in (ROOT / folder).rglob("test_*.py")]
    return sorted(str(path) for path in paths if path.stem in named)


if __name__ == "__main__":
    raise SystemExit(subprocess.call([sys.executable, "-m", "pytest", *files(), *sys.argv[1:]], cwd=ROOT))
