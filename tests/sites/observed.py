"""Whether a tracing library was handed what it would send: traces that go on in the run, and each error once."""

from __future__ import annotations

import collections
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.sites.site import Observed
from tests.sites.verdict import Sql

#: Lines of the worker's log that the site plans for: jobs that fail, a child that is killed, messages that were not
#: acknowledged yet when the queue was deleted, and that nobody listens for reports.
PLANNED = re.compile(
    r"planned\.(?:refuse|crash)|WorkerLostError|signal 9 \(SIGKILL\)|Couldn't (?:ack|reject) \d+, reason: ?Recoverable"
    r"|failed to send, dropping \d+ traces to intake at http://127\.0\.0\.1:9/"
)
#: What a library may report of them by way of the log.
FROM_THE_LOG = ("OutOfStock", "WorkerLostError", "RecoverableConnectionError", "ConsumerCancelled")
#: Endings that no task function reports, one of each.
ENDINGS = ("CrashLimitExceeded", "JobExpired")
_ERROR = re.compile(r"^\[[^\]]*: (?:ERROR|CRITICAL)/.*$", re.M)
_SWITCHED_OFF = "Statements can't be sent together"
_PLANNED_LEFT = (
    "SELECT count(*) FROM reliable_jobs_job WHERE task LIKE 'planned.%' AND status IN ('waiting', 'running')"
)
PARTS = 3

#: Seconds within which a library hears of a run whose end has been committed.
HEARD_LATE = 20.0


def judge(observed: Observed, folder: Path, sql: Sql, answers: dict[int, int]) -> list[str]:
    """What is wrong; nothing if all is well."""
    wait_for_planned(sql)
    deadline = time.monotonic() + HEARD_LATE
    while (wrong := _look(observed, folder, sql, answers)) and time.monotonic() < deadline:
        time.sleep(0.5)
    return wrong


def _look(observed: Observed, folder: Path, sql: Sql, answers: dict[int, int]) -> list[str]:
    taken = {number for number, status in answers.items() if status == 200}
    log = "".join(path.read_text(errors="replace") for path in sorted(folder.glob("worker*.log")))
    return [
        *points(sql, taken),
        *log_errors(log),
        *traces(observed, records(folder / "traces.jsonl"), taken),
        *(errors(records(folder / "errors.jsonl"), taken) if observed.errors else ()),
        *([] if observed.joins is (_SWITCHED_OFF not in log) else ["statements were switched to one by one"]),
    ]


def wait_for_planned(sql: Sql, seconds: float = 360.0) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and sql(_PLANNED_LEFT)[0][0]:
        time.sleep(0.5)


def records(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def points(sql: Sql, taken: set[int]) -> Iterator[str]:
    """Each job of a bundle took effect once."""
    found = collections.Counter((row[0], row[1]) for row in sql("SELECT number, part FROM shop_point"))
    wanted = collections.Counter({(number, part): 1 for number in taken if number % 7 == 1 for part in range(PARTS)})
    if found != wanted:
        yield f"points: {sorted((wanted - found).items())} are missing, {sorted((found - wanted).items())} too many"


def log_errors(log: str) -> Iterator[str]:
    for line in _ERROR.findall(log):
        if not PLANNED.search(line):
            yield f"the worker logged: {line}"


def traces(observed: Observed, noted: list[dict[str, Any]], taken: set[int]) -> Iterator[str]:
    if observed.joins and not all(line["joined"] for line in noted):
        yield "round trips are not joined"
    if not observed.traces:
        return
    requests = {line["number"]: line["trace"] for line in noted if line["what"] == "Order"}
    runs = [line for line in noted if line["what"] != "Order" and line["number"] in taken]
    if len(runs) < len(taken):
        yield f"only {len(runs)} runs were noted"
    for line in runs:
        if line["what"] == "Point" and not observed.bundles:
            continue
        if line["trace"] in ("None", "", "0") or line["trace"] != requests[line["number"]]:
            yield f"order {line['number']} was {line['what']} in trace {line['trace']}, not {requests[line['number']]}"


def errors(noted: list[dict[str, Any]], taken: set[int]) -> Iterator[str]:
    """A job that fails is reported once, also where no task function can; a retry, an ignored or a killed run never."""
    wanted = collections.Counter({*ENDINGS, *(f"order {number} is refused" for number in taken if number % 7 == 0)})
    reported: collections.Counter[str] = collections.Counter()
    for line in noted:
        kind = line["kind"].rpartition(".")[2]
        if kind in ENDINGS or kind == "Refused":
            reported[kind if kind in ENDINGS else line["text"]] += 1
        elif kind not in FROM_THE_LOG:
            yield f"reported: {line['kind']}: {line['text']}"
    for what in sorted(wanted | reported):
        if reported[what] != wanted[what]:
            yield f"reported {reported[what]} times: {what}"
