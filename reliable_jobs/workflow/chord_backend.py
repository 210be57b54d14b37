"""What Celery asks a result backend about chords, answered by rows: no result backend is needed for them."""

from __future__ import annotations

from typing import Any

from reliable_jobs import lifecycle
from reliable_jobs.enqueue import announced, owing
from reliable_jobs.message import debts
from reliable_jobs.message.row_to_message import as_uuid, foreign_id
from reliable_jobs.workflow import headers, plain_parts, unit


class ChordBackend:
    """Mixin of compat/celery_backend.py's AnsweringBackend, which calls these: each says whether the chord is ours.

    Which chords are ours headers.py says. Any other is Celery's, carried by the backend that is wrapped: its workers
    report there.
    """

    app: Any

    def begins_chord(self, group_id: Any, results: Any, body: Any) -> bool:
        """The header of a chord is called next."""
        known = as_uuid(group_id)
        if known is None or not headers.is_ours(self.app, results, ChordBackend):
            return False
        announced.announce(known, body)
        return True

    def takes_size(self, group_id: Any, size: int) -> bool:
        """The last task of a header is called next."""
        known = as_uuid(group_id)
        if known is None or announced.find(known) is None:
            return False
        here = unit.current()
        owing.note_size(known, size, None if here is None else here.using)
        return True

    def takes_added_part(self, group_id: Any, result: Any) -> bool:
        """A running part adds a task to its chord. Where its transaction is the part's own, a row keeps the place until
        the task is called, so that the chord waits for it. Elsewhere the call is to come before the part ends."""
        caller = self.app.current_worker_task
        run = None if caller is None else caller.request.get("reliable_run")
        known = as_uuid(group_id)
        if run is None or known is None or run.claim.job.owes != known:
            return False
        if caller.atomic:
            request = caller.request
            lifecycle.hold_place(
                foreign_id(result.id),
                run.claim.using,
                owes=known,
                place=owing.added_to(run.claim.job.place),
                root_id=as_uuid(request.root_id),
                parent_id=run.claim.job.pk,
            )
        return True

    def takes_end_of_part(self, request: Any, state: Any, result: Any) -> bool:
        """A task of a header has ended. Of a reliable one the row says so."""
        if not (request.chord and request.chord.get(debts.STUB)):
            return False
        if not getattr(self.app.tasks.get(request.task), "writes_outbox", False):
            plain_parts.ended(self.app, request.id, state, result)
        return True
