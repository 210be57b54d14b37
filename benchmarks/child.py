"""What the harness runs inside a fresh process: ``python -m benchmarks.child MODULE:FUNCTION JSON-ARGUMENTS``.

Sets Django up for the contender of BENCHMARK_RIVAL, calls ``FUNCTION(rival, **arguments)`` and writes its answer as
JSON to the file descriptor that BENCHMARK_ANSWER names, so that nothing that a contender prints is taken for it.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from typing import Any

import django

from benchmarks.rivals import NotRun, Rival, current


def install(rival: Rival) -> None:
    """Create all tables. ``at`` is the server's clock when the row is written, whoever writes it."""
    from django.core.management import call_command
    from django.db import connection

    call_command("migrate", verbosity=0, run_syncdb=True)
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE benchmark_effect ADD COLUMN at timestamptz NOT NULL DEFAULT clock_timestamp()")
    rival.install()


def fill(rival: Rival, count: int, first: int = 0) -> None:
    rival.fill(range(first, first + count))


def prune(rival: Rival) -> None:
    rival.prune()


def main() -> int:
    module, _, function = sys.argv[1].partition(":")
    answer: dict[str, Any]
    try:
        django.setup()
        importlib.import_module("benchmarks.project.celery")
        answer = {"answer": getattr(importlib.import_module(module), function)(current(), **json.loads(sys.argv[2]))}
    except NotRun as reason:
        answer = {"not_run": str(reason)}
    if "BENCHMARK_ANSWER" in os.environ:
        with os.fdopen(int(os.environ["BENCHMARK_ANSWER"]), "w") as out:
            json.dump(answer, out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
