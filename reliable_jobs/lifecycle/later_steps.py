"""Later steps of a workflow that will not come, because an earlier one did not succeed: their rows end, so that nobody
waits for them for ever. A requeue of the earlier step brings them back (held_places.py)."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from celery import current_app
from django.db.models import Q
from kombu.exceptions import EncodeError
from kombu.serialization import dumps
from kombu.utils import json as kombu_json

from reliable_jobs.clock import Now
from reliable_jobs.lifecycle.db_errors import clean
from reliable_jobs.lifecycle.listeners import tell
from reliable_jobs.lifecycle.transition import ERROR_LIMIT, record, transition
from reliable_jobs.message.decode import DECODED_BYTES, to_follow
from reliable_jobs.message.row_to_message import ENVELOPE_VERSION, foreign_id
from reliable_jobs.models import Job
from reliable_jobs.status import EventKind, Reason, Status
from reliable_jobs.translatable import EARLIER_CANCELLED


def end_steps(
    steps: Iterable[Mapping[str, Any]],
    using: str,
    *,
    status: Status = Status.FAILED,
    parent_id: uuid.UUID | None,
    root_id: uuid.UUID | None,
    error: str,
    exception: str | None = None,
    error_class: str = "",
    is_reliable: Callable[[str], bool],
    owed_by: Callable[[Mapping[str, Any]], tuple[uuid.UUID | None, str]] = lambda step: (None, ""),
) -> None:
    """Steps will not come, because what comes before them did not succeed: somebody may wait for their results. A row
    that is held for a step ends; where its id exists otherwise, that job stays as it is.

    Args:
        steps: as the message has them, with their ids.
        status: failed, or cancelled.
        parent_id: the job that did not succeed.
        exception: of that one, as message/exception_text.py writes it.
        error_class: the same, see :func:`db_errors.class_of`.
        is_reliable: says of a task's name whether its row is a job.
        owed_by: the group that waits for a step, and its place.
    """
    jobs = []
    for step in steps:
        options, name = step.get("options") or {}, clean(str(step.get("task") or ""), 255)[:255]
        if not options.get("task_id"):
            continue
        content_type, content_encoding, payload = _written(step.get("args") or (), step.get("kwargs") or {})
        headers = {"task": name, "id": options["task_id"]}
        envelope = {"v": ENVELOPE_VERSION, "exchange": "", "routing_key": "", "headers": headers, "properties": {}}
        jobs.append(
            Job(
                id=foreign_id(options["task_id"]),
                task=name,
                queue="",
                status=status,
                reason=Reason.EARLIER_STEP,
                error=clean(error, ERROR_LIMIT),
                exception=exception,
                error_class=error_class,
                due_at=Now(),
                finished_at=Now(),
                payload=payload.encode() if isinstance(payload, str) else payload,
                content_type=content_type,
                content_encoding=content_encoding,
                envelope=kombu_json.dumps(envelope),
                root_id=root_id,
                parent_id=parent_id,
                relay_only=not is_reliable(name),
                **dict(zip(("owes", "place"), owed_by(step), strict=True)),
            )
        )
    Job.objects.using(using).bulk_create(jobs, ignore_conflicts=True)
    held = Q(status=Status.WAITING, due_at=None) | Q(status=Status.SENT, reason=Reason.REPLACED)
    rows = Job.objects.using(using).filter(held, pk__in=[job.pk for job in jobs])
    for job in rows.defer("payload", "envelope").lock(wait=True):
        why = clean(error, ERROR_LIMIT)
        # What may have been started elsewhere can't be cancelled.
        ends = status if job.status == Status.WAITING else Status.FAILED
        transition(
            job, using, ends, reason=Reason.EARLIER_STEP, error=why, exception=exception, error_class=error_class
        )
        # No end of its own: the statistics count that of the earlier step.
        kind = EventKind.CANCEL if ends == Status.CANCELLED else EventKind.FAILURE
        record(job, using, kind, "", why, error_class=error_class)
    tell([job.pk for job in jobs], using)


def _written(args: Any, kwargs: Any) -> tuple[str, str, Any]:
    """The arguments of a step as a payload of JSON, for who looks at its row; without those that YAML or msgpack has
    and JSON has not. Nobody runs it: a requeue of the earlier step brings the step with its own."""
    try:
        return dumps((args, kwargs, {}), "json")
    except EncodeError:
        return dumps(((), {}, {}), "json")


def cancel_behind(ids: Sequence[uuid.UUID], using: str) -> None:
    """Jobs have been cancelled: the later steps of their chains are cancelled, too. Call it in the cancel's
    transaction."""
    for job in Job.objects.using(using).filter(pk__in=ids).iterator(chunk_size=50):
        # The message may be of another program. Its own size is no danger, as the row has been read.
        _, steps = to_follow(job, max(DECODED_BYTES, len(job.payload)))
        if not steps:
            continue
        end_steps(
            steps,
            using,
            status=Status.CANCELLED,
            parent_id=job.pk,
            root_id=job.root_id or job.pk,
            error=EARLIER_CANCELLED % {"id": job.pk},
            is_reliable=lambda name: getattr(current_app.tasks.get(name), "writes_outbox", False),
        )
