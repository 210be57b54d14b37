from __future__ import annotations

import json
from typing import Any

from django.core.management.base import CommandParser
from django.db.models import Count, DurationField, ExpressionWrapper, F, Max
from django.db.models.functions import Now

from reliable_jobs.management.base import JobCommand
from reliable_jobs.models import Job
from reliable_jobs.status import UNFINISHED


class Command(JobCommand):
    help = "Count the unfinished jobs by status, queue and task; say how old the oldest is and how many are overdue."

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("--json", action="store_true", help="One JSON object instead of text.")

    def handle(self, *args: Any, **options: Any) -> None:
        rows: list[dict[str, Any]] = []
        totals = {"unfinished": 0, "due": 0, "overdue": 0, "lost_runs": 0}

        def one(alias: str) -> None:
            here, jobs = _counts(alias), Job.objects.using(alias)
            totals["unfinished"] += sum(row["count"] for row in here)
            totals["due"] += jobs.due().count()
            totals["overdue"] += jobs.overdue().count()
            totals["lost_runs"] += jobs.lost_runs().count()
            rows.extend(here)

        self.on_each(self.databases(options), one)
        oldest = max((row["oldest_seconds"] for row in rows), default=None)
        if options["json"]:
            self.stdout.write(json.dumps({**totals, "oldest_seconds": oldest, "jobs": rows}))
            self.complain()
            return
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
        self.complain()


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
