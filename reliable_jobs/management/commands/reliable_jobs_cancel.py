from __future__ import annotations

import uuid
from typing import Any

from reliable_jobs import lifecycle
from reliable_jobs.lifecycle import Report
from reliable_jobs.management.base import ActionCommand, actor
from reliable_jobs.status import Status


class Command(ActionCommand):
    help = (
        "Cancel waiting jobs, by id or by selection; running ones are skipped. This is how to purge a queue: what "
        "'celery purge' empties out of the broker, the sweeper publishes again. Messages of cancelled jobs do nothing."
    )
    verb = "cancel"
    statuses = (Status.WAITING,)

    def act(self, ids: list[uuid.UUID], alias: str, options: dict[str, Any]) -> Report:
        return lifecycle.cancel(ids, alias, actor=actor())
