from __future__ import annotations

import argparse
import json
from typing import Any

from django.core.management.base import CommandError, CommandParser
from django.db.models import Count, DurationField, ExpressionWrapper, F, Max

from reliable_jobs.clock import Now
from reliable_jobs.compat.celery import configured_app
from reliable_jobs.dispatch.answers import Depth
from reliable_jobs.dispatch.publisher import publisher
from reliable_jobs.health.conditions import Condition, condition
from reliable_jobs.health.doctor import due_by_queue
from reliable_jobs.health.waiting import oldest_due, paused_queues, unswept_for
from reliable_jobs.management.base import JobCommand
from reliable_jobs.models import Job
from reliable_jobs.status import UNFINISHED

#: What the command may spend on asking the broker, in seconds.
BROKER_TIMEOUT = 3.0


class Command(JobCommand):
    help = (
        "Count the unfinished jobs by status, queue and task; say how old the oldest is, how many are overdue and who "
        "consumes their queues. Exit status 1 when jobs wait in a queue that no worker consumes, or for what --fail-if "
        "says."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("--json", action="store_true", help="One JSON object instead of text.")
        parser.add_argument(
            "--fail-if",
            action="append",
            type=_condition,
            default=[],
            metavar="CONDITION",
            help="Exit status 1 only when this holds: oldest>SECONDS (since the oldest waiting job became due), "
            "unfinished>N, due>N, overdue>N, lost_runs>N, no-sweeper, no-worker. May be given several times.",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        rows: list[dict[str, Any]] = []
        totals = {"unfinished": 0, "due": 0, "overdue": 0, "lost_runs": 0}
        waiting: dict[str, int] = {}
        due_for: list[float] = []
        unswept: list[float] = []
        paused: set[str] = set()

        def one(alias: str) -> None:
            here, jobs = _counts(alias), Job.objects.using(alias)
            totals["unfinished"] += sum(row["count"] for row in here)
            totals["due"] += jobs.due().count()
            totals["overdue"] += jobs.overdue().count()
            totals["lost_runs"] += jobs.lost_runs().count()
            due_for.extend(age for age in [oldest_due(alias)] if age is not None)
            unswept.extend(age for age in [unswept_for(alias)] if age is not None)
            paused.update(paused_queues(alias))
            for queue, count in due_by_queue(alias):
                waiting[queue] = waiting.get(queue, 0) + count
            rows.extend(here)

        self.on_each(self.databases(options), one)
        depths = publisher(configured_app()).depths(sorted(waiting), timeout=BROKER_TIMEOUT)
        oldest = max((row["oldest_seconds"] for row in rows), default=None)
        if options["json"]:
            queues = {queue: _as_json(count, depths.get(queue)) for queue, count in sorted(waiting.items())}
            due_seconds = {"oldest_seconds": oldest, "oldest_due_seconds": max(due_for, default=None)}
            report = {**totals, **due_seconds, "queues": queues, "jobs": rows}
            self.stdout.write(json.dumps(report))
        else:
            self._write(rows, totals, oldest)
            for queue, count in sorted(waiting.items()):
                self.stdout.write(f"Queue {queue}: {count} due, {_consumed(depths.get(queue))}.")
        self.complain()
        alone = [
            name
            for name in sorted(set(waiting) - paused)
            if name in depths and depths[name].exists and not depths[name].consumers
        ]
        if options["fail_if"]:
            states = {"no-sweeper": bool(unswept), "no-worker": bool(alone)}
            figures = {**totals, "oldest": max(due_for, default=None), **states}
            if broken := [why for one in options["fail_if"] if (why := one.holds(figures))]:
                raise CommandError("\n".join(broken), returncode=1)
        elif alone:
            raise CommandError(
                f"No worker consumes {', '.join(alone)}, and jobs wait there. Start one with -Q {','.join(alone)}.",
                returncode=1,
            )

    def _write(self, rows: list[dict[str, Any]], totals: dict[str, int], oldest: float | None) -> None:
        for row in rows:
            self.stdout.write(
                f"{row['count']:>8} {row['status']:<8} {row['task']}  (database {row['database']}, queue "
                f"{row['queue']}, oldest {row['oldest_seconds']:.0f} s)"
            )
        age = "" if oldest is None else f", the oldest {oldest:.0f} s old"
        self.stdout.write(f"{totals['unfinished']} unfinished job(s){age}.")
        self.stdout.write(
            f"{totals['due']} due and not published, {totals['overdue']} published and overdue, {totals['lost_runs']} "
            "running without a sign of life."
        )


def _condition(text: str) -> Condition:
    try:
        return condition(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _counts(alias: str) -> list[dict[str, Any]]:
    age = ExpressionWrapper(Now() - F("created_at"), output_field=DurationField())
    groups = (
        Job.objects.using(alias)
        .filter(status__in=[str(status) for status in UNFINISHED])
        .order_by()
        .values("status", "queue", "task")
        .annotate(count=Count("pk"), oldest=Max(age))
    )
    return [
        {
            "database": alias,
            "status": str(row["status"]),
            "queue": row["queue"],
            "task": row["task"],
            "count": row["count"],
            "oldest_seconds": round(row["oldest"].total_seconds(), 3),
        }
        for row in sorted(groups, key=lambda row: (row["status"], row["queue"], -row["count"]))
    ]


def _consumed(depth: Depth | None) -> str:
    if depth is None:
        return "consumers unknown (the broker did not say)"
    if not depth.exists:
        return "no queue of that name"
    return f"{depth.consumers} consumer{'' if depth.consumers == 1 else 's'}, {depth.ready} message(s) ready"


def _as_json(count: int, depth: Depth | None) -> dict[str, int | None]:
    return {
        "due": count,
        "consumers": None if depth is None else depth.consumers,
        "ready": None if depth is None else depth.ready,
    }
