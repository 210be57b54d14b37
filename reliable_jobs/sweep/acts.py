"""Carries out acts on many jobs: a few hundred jobs of each at every round of the sweep loop.

Never through the queue: "cancel all of queue Q" must not wait in line behind Q. Each step is one transaction: the act's
row is locked (another sweeper skips it), the user may still do it, the jobs and their events are written, the cursor
moves. A step that is killed leaves nothing; the next sweeper does it again.
"""

from __future__ import annotations

import datetime
import logging
import time
import uuid
from typing import Any

from django.contrib.auth import get_user_model
from django.db import Error as DatabaseError
from django.db import connections, transaction
from django.db.models import F, Q

from reliable_jobs import lifecycle
from reliable_jobs.clock import Now
from reliable_jobs.compat.django import skips_locked
from reliable_jobs.lifecycle.db_errors import clean
from reliable_jobs.models import ActState, BulkAct, JobQuerySet, Selection, Verb
from reliable_jobs.translatable import MAY_NOT, NO_USER, NOT_ACTIVE, STOPPED_BY

logger = logging.getLogger(__name__)

#: Jobs of one step, which is one transaction.
STEP = 500
#: Acts that one round takes on.
ACTS = 20
#: Seconds for which a rate saves up.
SAVED_UP = 10.0
NOTE_LIMIT = 1000


def begin(
    selection: Selection,
    using: str,
    *,
    verb: str,
    actor: str,
    user_id: str = "",
    queue: str = "",
    rate: float | None = None,
    expected: int | None = None,
) -> BulkAct:
    """Write an act on the jobs that there are now. The sweep loop carries it out.

    Args:
        verb: "requeue" or "cancel".
        actor: who asks, for the jobs' history.
        user_id: the primary key of the user who asks, as text. Each step looks whether that user may still do it.
        queue: requeue to this queue instead of each job's own.
        rate: most jobs in a second.
        expected: how many jobs the person was shown.
    """
    return BulkAct.objects.using(using).create(
        verb=Verb(verb),
        selection=selection.as_text(),
        queue=queue,
        rate=rate,
        actor=actor[:255],
        user_id=user_id,
        expected=expected,
    )


def stop(act_id: uuid.UUID, using: str, *, actor: str) -> bool:
    """Take no further jobs; says whether the act was running. Waits for a step in progress, which is short."""
    running = BulkAct.objects.using(using).filter(pk=act_id, state=ActState.RUNNING)
    return bool(running.update(state=ActState.STOPPED, note=STOPPED_BY % {"actor": actor}, ended_at=Now()))


def sweep(using: str) -> bool:
    """One step of each act that runs. Says whether there is more to do at once."""
    running = BulkAct.objects.using(using).filter(state=ActState.RUNNING).order_by("cutoff")
    steps = [_tried(act_id, using) for act_id in running.values_list("pk", flat=True)[:ACTS]]
    return any(steps)


def carry_on(act_id: uuid.UUID, using: str, seconds: float) -> None:
    """Do the first steps in the caller's thread: a small act is done when the page answers."""
    until = time.monotonic() + seconds
    while _tried(act_id, using) and time.monotonic() < until:
        pass


def _tried(act_id: uuid.UUID, using: str) -> bool:
    try:
        return _step(act_id, using)
    except Exception as error:  # of one act, whatever it is: the sweep and the other acts go on
        logger.warning("A step of act %s failed (%s: %s).", act_id, type(error).__name__, error)
        running = BulkAct.objects.using(using).filter(pk=act_id, state=ActState.RUNNING)
        note = clean(f"{type(error).__name__}: {error}", NOTE_LIMIT)
        if isinstance(error, DatabaseError):
            running.update(note=f"{note} (tried again)")
        else:  # the same would happen at each round
            running.update(state=ActState.STOPPED, note=f"stopped by an error: {note}", ended_at=Now())
        return False


def _step(act_id: uuid.UUID, using: str) -> bool:
    """Deal with the next jobs of an act. Says whether the next step can follow at once."""
    acts = BulkAct.objects.using(using)
    with transaction.atomic(using=using):
        locked = acts.select_for_update(skip_locked=skips_locked(connections[using]))
        act = locked.filter(pk=act_id, state=ActState.RUNNING).annotate(now=Now()).first()
        if act is None:
            return False
        if why := _not_allowed(act):
            acts.filter(pk=act_id).update(state=ActState.STOPPED, note=why, ended_at=Now())
            return False
        room = _room(act, act.now)
        if room <= 0:
            return False
        found = list(_left(act, using).values_list("pk", _selection(act).time_column)[:room])
        changes: dict[str, Any] = {"stepped_at": act.now}
        if found:
            report = _do(act, [pk for pk, _ in found], using)
            changes.update(cursor_id=found[-1][0], cursor_at=found[-1][1])
            changes.update(done=F("done") + len(report.done), skipped=F("skipped") + len(report.skipped))
        over = len(found) < room
        if over:
            changes.update(state=ActState.DONE, ended_at=Now())
        acts.filter(pk=act_id).update(**changes)
    return not over and act.rate is None


def _room(act: BulkAct, now: datetime.datetime) -> int:
    """How many jobs the next step may take. A rate counts from the last step, and saves up for some seconds only: after
    an hour without a sweeper not all of an hour come at once."""
    if act.rate is None:
        return STEP
    seconds = min((now - (act.stepped_at or act.cutoff)).total_seconds(), max(SAVED_UP, 1.0 / act.rate))
    return int(min(float(STEP), act.rate * max(0.0, seconds)))


def _selection(act: BulkAct) -> Selection:
    return Selection.from_text(act.selection)


def _left(act: BulkAct, using: str) -> JobQuerySet:
    selection = _selection(act)
    column = selection.time_column
    rows = selection.rows(using).filter(**{f"{column}__lte": act.cutoff}).order_by(column, "pk")
    if act.cursor_at is not None:
        behind = Q(**{f"{column}__gt": act.cursor_at}) | Q(**{column: act.cursor_at}, pk__gt=act.cursor_id)
        rows = rows.filter(behind, **{f"{column}__gte": act.cursor_at})  # the second is for the index
    return rows


def _do(act: BulkAct, ids: list[uuid.UUID], using: str) -> lifecycle.Report:
    if act.verb == Verb.CANCEL:
        return lifecycle.cancel(ids, using, actor=act.actor, act_id=act.pk)
    return lifecycle.requeue(ids, using, actor=act.actor, queue=act.queue or None, act_id=act.pk)


def _not_allowed(act: BulkAct) -> str:
    """Why the user who asked may not go on; "" where that is fine, or no user is known (a command, code)."""
    if not act.user_id:
        return ""
    users: Any = get_user_model()._default_manager
    user = users.filter(pk=act.user_id).first()
    if user is None:
        return NO_USER % {"actor": act.actor}
    if not user.is_active:
        return NOT_ACTIVE % {"actor": act.actor}
    if not user.has_perm(f"reliable_jobs.{act.verb}_job"):
        return MAY_NOT % {"actor": act.actor, "verb": act.verb}
    return ""
