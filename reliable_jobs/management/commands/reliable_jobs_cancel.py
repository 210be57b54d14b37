from __future__ import annotations

import uuid
from typing import Any

from django.core.management.base import CommandError, CommandParser

from reliable_jobs import lifecycle
from reliable_jobs.lifecycle import Report, workflows
from reliable_jobs.management.base import ActionCommand, actor
from reliable_jobs.models import Job, JobGroup
from reliable_jobs.status import UNFINISHED, GroupState, Status
from reliable_jobs.workflow import cancelling


class Command(ActionCommand):
    help = (
        "Cancel waiting jobs, by id or by selection; running ones are skipped. This is how to purge a queue: what "
        "'celery purge' empties out of the broker, the sweeper publishes again. Messages of cancelled jobs do nothing."
    )
    verb = "cancel"
    statuses = (Status.WAITING,)

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument(
            "--workflow",
            action="append",
            type=uuid.UUID,
            metavar="ID",
            help="All that has not ended of the workflow that this id belongs to: of its first job or group, or of any "
            "job or body in it. May be given several times.",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        if not options["workflow"]:
            super().handle(*args, **options)
            return
        if options["ids"] or self.selects(options):
            raise CommandError("--workflow names all jobs of a workflow: leave the other selections out.")
        self._cancel_workflows(options["workflow"], options)

    def _cancel_workflows(self, ids: list[uuid.UUID], options: dict[str, Any]) -> None:
        count = 0
        found: dict[str, set[uuid.UUID]] = {}

        def choose(alias: str) -> None:
            nonlocal count
            for root_id in {workflows.root_of(one, alias) for one in ids} - {None}:
                assert root_id is not None
                rows = Job.objects.using(alias).filter(workflows.members(root_id), status__in=UNFINISHED).count()
                open_groups = JobGroup.objects.using(alias).filter(root_id=root_id, state=GroupState.OPEN).count()
                count += rows
                if rows or open_groups:
                    found.setdefault(alias, set()).add(root_id)

        self.on_each(self.databases(options), choose)
        if options["dry_run"] or not found:
            self.stdout.write(f"Would cancel {count} job(s)." if found else "Nothing of it is unfinished.")
            self.complain()
            return
        if not options["yes"]:
            self.ask(f"Cancel {count} unfinished job(s), and what would follow them? [y/N] ")
        total = Report()

        def act(alias: str) -> None:
            for root_id in found[alias]:
                total.add(cancelling.cancel_workflow(root_id, alias, actor=actor()))

        self.on_each(found, act)
        self.say(total)
        self.complain()

    def act(self, ids: list[uuid.UUID], alias: str, options: dict[str, Any]) -> Report:
        return lifecycle.cancel(ids, alias, actor=actor())
