"""Which open transaction holds a job's row: so one sees a first atomic run, which shows nowhere else."""

from __future__ import annotations

import dataclasses
import datetime
import uuid
from collections.abc import Sequence

from django.db import connections

from reliable_jobs.compat.django import quoted
from reliable_jobs.models import Job


@dataclasses.dataclass(frozen=True)
class Holder:
    """The open transaction that holds a job's row: a run, or for a moment the sweeper or a person's action."""

    backend: int
    since: datetime.datetime | None
    client: str | None


def holders(ids: Sequence[uuid.UUID], using: str) -> dict[uuid.UUID, Holder]:
    """Which of these rows an open transaction has locked, found without locking anything: a claim that met our lock,
    were it only for a millisecond, would drop its message as a duplicate. {} where the database can't say.

    A first atomic run shows nothing in its row until it ends; this is how one sees it. PostgreSQL keeps the locker's
    transaction id in ``xmax``, and a transaction holds a lock on its own id while it is open.
    """
    if not ids or connections[using].vendor != "postgresql":
        return {}
    with connections[using].cursor() as cursor:
        cursor.execute(
            # The rows are read once and first: PostgreSQL expects few locks, and read the rows again for each open
            # transaction of the server, whatever its database.
            f"""WITH job AS MATERIALIZED (
                    SELECT id, xmax FROM {quoted(connections[using], Job._meta.db_table)} WHERE id = ANY(%s)
                )
                SELECT job.id, held.pid, session.xact_start, session.client_addr::text
                FROM job
                JOIN pg_locks held ON held.locktype = 'transactionid' AND held.transactionid = job.xmax
                    AND held.mode = 'ExclusiveLock' AND held.granted AND held.pid <> pg_backend_pid()
                LEFT JOIN pg_stat_activity session ON session.pid = held.pid""",
            [list(ids)],
        )
        return {job_id: Holder(pid, since, client) for job_id, pid, since, client in cursor.fetchall()}
