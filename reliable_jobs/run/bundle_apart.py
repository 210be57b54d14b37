"""A bundle's jobs, each handed to Celery's tracer as if its own message had been delivered: they share the message and
nothing else.

1. dispatch/bundles.py puts first sends of an atomic task into one message, as many as take 100 ms by their run times.
2. The child reads all rows with one SELECT that locks nothing, and delivers one job after the other. The claim of each
   is that of any first run, its row's lock: no lease, token or crash is shared, and content version, pause, expiry,
   signature, retry, result and follow-ups need no rule of their own.
3. A job that the parent process has to see (revoked, sent again, crashed before, unreadable) is sent alone.
4. After LONGEST seconds no further job begins: a thread sends alone those that wait behind a function that is slow.
5. So a time limit, ten times as long at least, meets the one job that runs then. The message's limits are LONGEST
   longer than the task's: see worker/requests.py.
6. A redelivered message runs nothing: what waits is sent alone, as a second send with a committed claim, and then what
   has ended is shown as a copy. So one that kills its process is found, and no neighbour is blamed.
7. Where the worker's monitors hear of tasks, the child tells them of each job: see task_events.py.
"""

from __future__ import annotations

import collections
import threading
import time
import uuid
from collections.abc import Callable, Collection, Mapping
from typing import Any

from celery.exceptions import Reject, SoftTimeLimitExceeded
from kombu.serialization import loads

from reliable_jobs.compat.celery_run import trace
from reliable_jobs.compat.django import close_connections
from reliable_jobs.compat.kombu import content_types
from reliable_jobs.conf import settings
from reliable_jobs.errors import NotRecorded
from reliable_jobs.logs import job_logger
from reliable_jobs.message.row_to_message import HEADER, PICKLE, SENT, outgoing
from reliable_jobs.message.shape import misshapen
from reliable_jobs.models import Job
from reliable_jobs.run.task_events import TaskEvents
from reliable_jobs.status import FINAL, Status

logger = job_logger(__name__)

#: Seconds after which a message's other jobs are sent alone.
LONGEST = 1.0
#: Where a request says which jobs its worker wants sent alone: their ids, or True for all.
ALONE = "reliable_alone"
#: All that is read of a row: what its message is made of, and whether it is to be delivered here.
_READ = (*SENT, "status", "crashes", "interruptions")


class Turns:
    """The jobs of one message, one after the other.

    Args:
        content_versions: that the message names, by the jobs' ids.
        alone: ids of those that are not to be delivered here.
        send: sends jobs alone, each in its own message.
        began: when the message did (monotonic).
        events: hears what is to be told to monitors; None where none listens.
    """

    def __init__(
        self,
        carrier: Any,
        task: Any,
        using: str,
        content_versions: Mapping[uuid.UUID, int],
        alone: Collection[uuid.UUID],
        send: Callable[[set[uuid.UUID]], Any],
        began: float,
        events: TaskEvents | None = None,
    ) -> None:
        self.carrier, self.task, self.using, self.began, self.events = carrier, task, using, began, events
        self.content_versions, self.send = content_versions, send
        #: Ids of those that are to be sent alone, and have not been.
        self.left = set(alone)
        self._waiting: collections.deque[Job] = collections.deque()
        self._over = threading.Event()

    def read(self) -> None:
        """Read the rows.

        Raises:
            django.db.Error: they could not be read.
        """
        rows = Job.objects.using(self.using).filter(pk__in=list(self.content_versions), task=self.task.name)
        found = {job.pk: job for job in rows.only(*_READ)}
        for job_id in self.content_versions:
            job = found.get(job_id)
            if job is None:
                logger.warning("Job %s has no row in %r any more, or is another task's; dropped.", job_id, self.using)
            elif job.status in FINAL:
                self._waiting.append(job)  # cancelled, or done by a copy: see delivery.py
            elif job.status != Status.WAITING or job_id in self.left:
                continue  # it runs, or is sent alone
            elif job.failures or job.crashes or job.interruptions or job.requeues:
                self.left.add(job_id)
            else:
                self._waiting.append(job)

    def run(self) -> None:
        """Deliver them. Afterwards :attr:`left` says which are to be sent alone."""
        beside = self._started()
        try:
            while self._waiting and time.monotonic() - self.began < LONGEST:
                try:
                    job = self._waiting.popleft()
                except IndexError:  # the thread was quicker
                    break
                try:
                    done = self._delivered(job)
                except SoftTimeLimitExceeded:  # meant for a function that has just returned
                    done = False
                if not done:
                    self.left.add(job.pk)
        finally:
            self._over.set()
            if beside is not None:
                beside.join(settings.LEASE)
        self.left.update(job.pk for job in self._waiting)

    def _delivered(self, job: Job) -> bool:
        answer = hand_over(self.carrier, self.task, self.using, job, self.content_versions[job.pk], self.events)
        if answer is None:
            return job.status in FINAL
        # As the worker answers a message of its own.
        told = answer.info.retval if answer.info is not None else None
        return not (isinstance(told, NotRecorded) or (isinstance(told, Reject) and told.requeue))

    def _started(self) -> threading.Thread | None:
        thread = threading.Thread(target=self._watch, name="reliable_jobs-batch", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # no room for another thread: they are sent when the function has returned
            return None
        return thread

    def _watch(self) -> None:
        if self._over.wait(LONGEST - (time.monotonic() - self.began)):
            return
        taken: list[Job] = []
        while self._waiting:
            try:
                taken.append(self._waiting.pop())
            except IndexError:
                break
        try:
            if taken:
                self.send({job.pk for job in taken})
        except Exception as error:  # of the database: nothing was sent, and the child tries again
            self._waiting.extend(reversed(taken))
            logger.info("%d jobs wait behind a slow one, and could not be sent alone yet: %r", len(taken), error)
        finally:
            close_connections()
        if self.events is not None:
            self.events.tell()


def show_ended(
    carrier: Any, task: Any, using: str, content_versions: Mapping[uuid.UUID, int], events: TaskEvents | None
) -> None:
    """Show the tracer, as copies, those jobs of a redelivered message that have ended: their worker may have died
    between its commit and what comes after it, the store in another result backend and the look at their chords.

    Raises:
        django.db.Error: the rows could not be read.
    """
    rows = Job.objects.using(using).filter(pk__in=list(content_versions), task=task.name, status__in=FINAL)
    for job in rows.only(*SENT, "status"):
        # Other ends were told at once. A success mostly was not; it is told twice rather than never.
        told = events if job.status == Status.SUCCEEDED else None
        hand_over(carrier, task, using, job, content_versions[job.pk], told)


def hand_over(
    carrier: Any, task: Any, using: str, job: Job, content_version: int, events: TaskEvents | None = None
) -> Any:
    """Have the tracer deliver one job; returns its answer, None where its message has to be seen by the worker's
    parent process.

    Args:
        content_version: that the message names.
    """
    accepted = content_types(carrier.app.conf.accept_content)
    try:
        message = outgoing(job, using)
        headers = message.headers
        if job.content_type in PICKLE or any(headers.get(name) for name in ("compression", "eta", "expires")):
            return None
        args, kwargs, embed = loads(message.body, job.content_type, job.content_encoding, accept=accepted)
        if misshapen(headers, args, kwargs, embed) is not None:
            return None
    except SoftTimeLimitExceeded:
        raise
    except Exception:  # any registered codec may raise anything on hostile bytes, and an envelope hold anything
        return None
    asked = carrier.request
    pointer = {"content_version": content_version, "using": using, "send": 1, "requeues": job.requeues}
    request = {
        **headers,
        HEADER: pointer,
        "properties": message.properties,
        "reply_to": message.properties.get("reply_to"),
        "correlation_id": message.properties.get("correlation_id"),
        "hostname": asked.hostname,
        "delivery_info": dict(asked.delivery_info),
        "args": args,
        "kwargs": kwargs,
        "is_eager": False,
        **(embed or {}),
    }
    if events is not None:
        events.starts(headers)
    answer = trace(task, headers["id"], args, kwargs, request, carrier.app)
    if events is not None:
        events.ended(headers["id"], answer)
    return answer
