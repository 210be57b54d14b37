"""Run the tests that pin private interfaces of Celery, kombu, py-amqp, Django and psycopg: the files that the table in
docs/architecture.md names. tox.ini runs it on servers with every supported pair of Celery and Django.

    python -m tests.pins [PYTEST-ARGUMENT...]
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
#: A row of the table: an interface, why it is used, and the test files.
ROW = re.compile(r"^\| (?:Celery|Django|kombu|psycopg|py-amqp): .*\| ([^|]*) \|$", re.M)


def files() -> list[str]:
    """The test files, relative to the project's directory."""
    cells = ROW.findall((ROOT / "docs" / "architecture.md").read_text())
    return sorted({f"tests/{name}" for cell in cells for name in re.findall(r"`(test_\w+\.py)`", cell)})


if __name__ == "__main__":
    raise SystemExit(subprocess.call([sys.executable, "-m", "pytest", *files(), *sys.argv[1:]], cwd=ROOT))
