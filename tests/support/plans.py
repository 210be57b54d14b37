"""How PostgreSQL carries out what is said to the jobs table, and a table whose statistics mislead it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from django.db import connection, transaction

from reliable_jobs.lifecycle.sql import OF_EACH_RUN

#: Rows of each status: more than a page of an index holds.
MANY = 3000


class Explained(NamedTuple):
    sql: str
    #: Indexes of the jobs table that it uses; "" where it reads the whole table.
    indexes: set[str]
    #: Blocks of 8 kB that it reads.
    blocks: int


class _Undone(Exception):
    pass


@contextlib.contextmanager
def explained() -> Iterator[list[Explained]]:
    """What is said to the jobs table meanwhile. Each statement is carried out, taken back, and then really said."""
    found: list[Explained] = []

    def listen(execute: Callable[..., Any], sql: Any, params: Any, many: bool, context: Any) -> Any:
        verb = sql.removeprefix(OF_EACH_RUN).split(None, 1)[0] if isinstance(sql, str) else ""
        if '"reliable_jobs_job"' in sql and verb in ("SELECT", "UPDATE", "DELETE", "WITH"):
            with contextlib.suppress(_Undone), transaction.atomic(), connection.connection.cursor() as cursor:
                cursor.execute("EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) " + sql, params)
                [plan] = cursor.fetchone()
                top = (json.loads(plan) if isinstance(plan, str) else plan)[0]["Plan"]
                found.append(Explained(sql, _indexes(top), top["Shared Hit Blocks"] + top["Shared Read Blocks"]))
                raise _Undone
        return execute(sql, params, many, context)

    with connection.execute_wrapper(listen):
        yield found


def _indexes(plan: dict[str, Any]) -> set[str]:
    here = {plan.get("Index Name", "")} if plan["Node Type"].endswith("Scan") else set()
    if plan.get("Relation Name", "reliable_jobs_job") != "reliable_jobs_job" or plan["Node Type"] == "Bitmap Heap Scan":
        here = set()
    return here.union(*map(_indexes, plan.get("Plans", ())))


def mislead() -> None:
    """The statistics are of an hour when nothing waited, as they mostly are where a queue is healthy."""
    _fill("succeeded")
    with connection.cursor() as cursor:
        cursor.execute("VACUUM ANALYZE reliable_jobs_job")
    _fill("waiting")
    _fill("running")


def _fill(status: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            """
            INSERT INTO reliable_jobs_job (id, task, queue, sends, key_forever, payload, content_type, content_encoding,
                envelope, due_at, check_at, status, reason, error, traceback, worker, epoch, content_version, failures,
                crashes, interruptions, requeues, finished_at, lease_at)
            SELECT gen_random_uuid(), 'other', 'other', 1, false, '', '', '', '{}', now(), now() + '1 day', %s, '', '',
                '', '', 0, 0, 0, 0, 0, 0, CASE WHEN %s = 'succeeded' THEN now() END,
                CASE WHEN %s = 'running' THEN now() + '1 day' END
            FROM generate_series(1, %s)
            """,
            [*[status] * 3, MANY],
        )
