from __future__ import annotations

import uuid
from typing import Any

from django.core.management.base import CommandParser

from reliable_jobs import lifecycle
from reliable_jobs.lifecycle import Report
from reliable_jobs.management.base import ActionCommand, actor
from reliable_jobs.status import Status


class Command(ActionCommand):
    help = (
        "Run jobs again: settled ones start anew, waiting ones become due now, running ones are skipped. Name them by "
        "id, or select them (failed ones unless --status says otherwise)."
    )
    verb = "requeue"
    statuses = (Status.FAILED, Status.WAITING, Status.CANCELLED, Status.EXPIRED, Status.SUCCEEDED)

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("--to-queue", help="Send them to this queue instead of their own.")

    def act(self, ids: list[uuid.UUID], alias: str, options: dict[str, Any]) -> Report:
        return lifecycle.requeue(ids, alias, actor=actor(), queue=options["to_queue"])
