from __future__ import annotations

import dataclasses
import json
from typing import Any

from celery import Celery
from django.core.management.base import CommandError, CommandParser

from reliable_jobs.adopt.report import as_text, report_on, summary
from reliable_jobs.management.base import JobCommand, in_chunks
from reliable_jobs.message.decode import NotDecoded, arguments
from reliable_jobs.models import Job
from reliable_jobs.status import UNFINISHED

#: Ids shown of each group.
EXAMPLES = 3


@dataclasses.dataclass
class Group:
    """Jobs of one task that can't run for one reason."""

    task: str
    reason: str
    count: int = 0
    examples: list[str] = dataclasses.field(default_factory=list)


class Command(JobCommand):
    help = (
        "List the unfinished jobs that the code at hand could not run: unknown task, arguments that no longer fit, "
        "undecodable payload. Run it with the new code before a deploy. Exit status 1 when there are any. With "
        "--adopt: read the project's tasks, and list what in them must not run in one transaction. Exit status 1 when "
        "there is such a thing in a task that is atomic."
    )
    requires_system_checks = ()  # it reports, and must do so also where a check fails

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("--json", action="store_true", help="One JSON object instead of text.")
        parser.add_argument("--adopt", action="store_true", help="Read the tasks' source instead of the jobs.")

    def handle(self, *args: Any, **options: Any) -> None:
        app = self.celery_app(with_tasks=True)
        if options["adopt"]:
            self._adopt(app, options)
            return
        unfinished = 0
        groups: dict[tuple[str, str], Group] = {}

        def one(alias: str) -> None:
            nonlocal unfinished
            for status in UNFINISHED:
                rows = Job.objects.using(alias).filter(status=status).defer("traceback", "error", "result")
                for chunk in in_chunks(rows):
                    unfinished += len(chunk)
                    for job in chunk:
                        reason = why_not(app, job)
                        if reason is not None:
                            group = groups.setdefault((job.task, reason), Group(job.task, reason))
                            group.count += 1
                            if len(group.examples) < EXAMPLES:
                                group.examples.append(str(job.pk))

        self.on_each(self.databases(options), one)
        found = sorted(groups.values(), key=lambda group: (group.task, -group.count))
        unfit = sum(group.count for group in found)
        if options["json"]:
            report = {
                "unfinished": unfinished,
                "unfit": unfit,
                "groups": [dataclasses.asdict(group) for group in found],
            }
            self.stdout.write(json.dumps(report))
        else:
            for group in found:
                self.stdout.write(f"{group.task or '(no task name)'}: {group.count} job(s): {group.reason}")
                self.stdout.write(f"    e.g. {', '.join(group.examples)}")
        self.complain()
        if unfit:
            raise CommandError(
                f"This code could not run {unfit} of {unfinished} unfinished job(s). Keep the old name or signature "
                "until they are done (new parameters need a default), or cancel them.",
                returncode=1,
            )
        if not options["json"]:
            self.stdout.write(f"This code can run all {unfinished} unfinished job(s).")

    def _adopt(self, app: Celery, options: dict[str, Any]) -> None:
        report = report_on(app.tasks.values())
        if options["json"]:
            self.stdout.write(json.dumps(dataclasses.asdict(report)))
        else:
            for line in [*as_text(report), *summary(report)]:
                self.stdout.write(line)
        if report.atomic_suspects:
            raise CommandError(
                f"{len(report.atomic_suspects)} atomic task(s) do what must not be in one transaction.", returncode=1
            )


def why_not(app: Celery, job: Job) -> str | None:
    """Why the tasks of this app can't run a job; None when they can."""
    task = app.tasks.get(job.task)
    if task is None:
        return "unknown task"
    if not getattr(task, "writes_outbox", False):
        return "not a reliable task any more: it would run without being settled"
    try:
        args, kwargs = arguments(job)
    except NotDecoded:
        return None  # a worker reads it; nothing is known here
    except ValueError as error:
        return str(error)
    misfit: str | None = task.misfit(args, kwargs)
    return misfit
