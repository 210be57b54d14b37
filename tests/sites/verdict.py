"""What came of a site's orders, from its business tables and by plain SQL."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import subprocess
import threading
from collections.abc import Iterator
from typing import Any

from tests.sites.project import Project

#: The entries that each kind of order leads to; an order's kind is its number modulo 7, see template/shop/views.py.
ENTRIES = (
    {"booked"},
    {"paid"},
    {"reminded"},
    {"receipt", *(f"item {position}" for position in range(30))},
    {"packed", "labelled", "weighed", "shipped"},
    {"charged"},
    {"invoiced", "mailed"},
)
#: Runs that each kind of order asks for: one for each entry, and the planned retry of a payment. Items share messages
#: and are not counted.
RUNS = (1, 2, 1, 1, 4, 1, 2)

_SQL = """
import json, sys
import django
django.setup()
from django.db import connections
for line in sys.stdin:
    try:
        alias, sql = json.loads(line)
        with connections[alias].cursor() as cursor:
            cursor.execute(sql)
            answer = [list(row) for row in cursor.fetchall()]
    except Exception as error:
        connections.close_all()
        answer = repr(error)
    print(json.dumps(answer, default=str), flush=True)
"""


class Sql:
    """Plain SQL in the site's databases. A process of the site's environment asks, because it has the drivers."""

    def __init__(self, project: Project) -> None:
        self._project = project
        with (project.folder / "sql.log").open("ab") as log:
            self._process = subprocess.Popen(
                [project.python, "-c", _SQL],
                cwd=project.folder,
                env={**project.environment, "DJANGO_SETTINGS_MODULE": "proj.settings"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def __call__(self, sql: str, alias: str = "default") -> list[list[Any]]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        watchdog = threading.Timer(60, self._process.kill)
        watchdog.start()
        try:
            self._process.stdin.write(json.dumps([alias, sql]) + "\n")
            self._process.stdin.flush()
            answer = json.loads(self._process.stdout.readline() or '"the process that asks has ended"')
        finally:
            watchdog.cancel()
        if isinstance(answer, str):
            raise RuntimeError(f"{sql}: {answer}")
        return list(answer)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._process.communicate(timeout=10)
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()


@dataclasses.dataclass
class Verdict:
    """Counts, and for each of them the orders or jobs that show it."""

    lost: int = 0
    phantom: int = 0
    doubled: int = 0
    unfinished: int = 0
    healthy_but_failed: int = 0
    evidence: list[str] = dataclasses.field(default_factory=list)

    @property
    def clean(self) -> bool:
        return not (self.lost or self.phantom or self.doubled or self.unfinished or self.healthy_but_failed)


def judge(sql: Sql, answers: dict[int, int], alias: str = "default", schema: str = "") -> Verdict:
    """Hold the tables against what the requests were answered: 200 for an order taken, 409 for one rolled back."""
    verdict = Verdict()
    orders = collections.Counter(row[0] for row in sql(f"SELECT number FROM {schema}shop_order", alias))
    entries = collections.Counter(
        (row[0], row[1]) for row in sql(f"SELECT number, what FROM {schema}shop_entry", alias)
    )
    for number, status in answers.items():
        if status == 200 and not orders[number]:
            verdict.lost += 1
            verdict.evidence.append(f"lost: order {number} was answered with 200 and has no row")
        if status != 200 and orders[number]:
            verdict.phantom += 1
            verdict.evidence.append(f"phantom: order {number} was answered with {status} and has a row")
    wanted = {(number, what) for number in orders for what in ENTRIES[number % 7]}
    for number, what in sorted(wanted):
        count = entries[number, what]
        if count == 0:
            verdict.lost += 1
            verdict.evidence.append(f"lost: order {number} was never {what}")
        elif count > 1:
            verdict.doubled += 1
            verdict.evidence.append(f"doubled: order {number} was {what} {count} times")
    for number, what in sorted(set(entries) - wanted):
        verdict.phantom += 1
        verdict.evidence.append(f"phantom: order {number} does not exist and was {what}")
    for job, task, status, reason, error in sql(_JOBS, alias):
        if status in ("waiting", "running"):
            verdict.unfinished += 1
            verdict.evidence.append(f"unfinished: {task} {job} is {status} ({reason}): {error[-300:]}")
        else:
            verdict.healthy_but_failed += 1
            verdict.evidence.append(f"healthy-but-failed: {task} {job} is {status} ({reason}): {error[-300:]}")
    for (group,) in sql(_GROUPS, alias):
        verdict.unfinished += 1
        verdict.evidence.append(f"unfinished: what follows group {group} has not been written")
    return verdict


_JOBS = (
    "SELECT id, task, status, reason, error FROM reliable_jobs_job WHERE task LIKE 'shop.%' AND status <> 'succeeded'"
)
#: After the last part has ended, and before what follows has been written, no job is unfinished.
_GROUPS = "SELECT id FROM reliable_jobs_jobgroup WHERE state = 'open'"


def unfinished(sql: Sql, alias: str = "default") -> int:
    open_groups = len(sql(_GROUPS, alias))
    found = sql(
        "SELECT count(*) FROM reliable_jobs_job WHERE task LIKE 'shop.%' AND status IN ('waiting', 'running')", alias
    )
    return open_groups + int(found[0][0])


def planned_runs(answers: dict[int, int]) -> int:
    return sum(RUNS[number % 7] for number, status in answers.items() if status == 200)


@contextlib.contextmanager
def asking(project: Project) -> Iterator[Sql]:
    sql = Sql(project)
    try:
        yield sql
    finally:
        sql.close()
