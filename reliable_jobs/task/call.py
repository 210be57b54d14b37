"""The calling half of a reliable task: ``delay()`` and its kin, from the arguments to the outbox."""

from __future__ import annotations

import datetime
import functools
import itertools
import uuid
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from celery import Task
from django.db import transaction

from reliable_jobs.compat.celery_results import OfTask, leave_unsubscribed
from reliable_jobs.enqueue.render import Capture
from reliable_jobs.enqueue.template import Template, is_safe, template_of
from reliable_jobs.errors import EnqueueError, InvalidOption, UnserialisableArguments
from reliable_jobs.message.row_to_message import Rendered, as_key, as_uuid
from reliable_jobs.task import stages
from reliable_jobs.task.call_variants import CallVariants
from reliable_jobs.task.function import Function
from reliable_jobs.task.sensitive import Sensitive
from reliable_jobs.task.times import Times
from reliable_jobs.task_types import P, R_co

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from reliable_jobs.results import JobResult
    from reliable_jobs.task.options import Args, BulkOptions, CeleryOptions, Kwargs


class Call(Times, Function, Sensitive, CallVariants[P, R_co]):
    """What a caller uses of :class:`~reliable_jobs.task.reliable_task.ReliableTask`."""

    #: Of this task's plain calls in this process, once there was one; see enqueue/template.py.
    template: Template | None = None

    def apply_async(
        self,
        args: Args = None,
        kwargs: Kwargs = None,
        task_id: str | None = None,
        producer: Any = None,
        link: Any = None,
        link_error: Any = None,
        shadow: str | None = None,
        *,
        countdown: float | None = None,
        eta: datetime.datetime | str | None = None,
        expires: float | datetime.datetime | str | None = None,
        key: str | int | uuid.UUID | None = None,
        key_forever: bool = False,
        using: str | None = None,
        transactional: bool = True,
        **options: Unpack[CeleryOptions],
    ) -> JobResult[R_co]:
        """Write the job; publish it when the transaction commits.

        All of Celery's options are taken. ``producer``, ``connection`` and the publish-retry options have no effect:
        the outbox dispatches.

        Args:
            args, kwargs: the arguments of the task function.
            task_id: the job's id, a UUID in any spelling, which its message and result keep; a new one by default.
            producer: without effect.
            link, link_error: tasks that are called with the result, or with the error.
            shadow: a name for logs and monitors.
            countdown: seconds from now before which the job does not start.
            eta: the same as a time; a naive one is UTC, as for Celery.
            expires: seconds, or a time, after which the job must not start any more.
            key: idempotency key, unique per task: the same key is the same job while that one is unfinished. A number
                or a UUID is the same key as its text.
            key_forever: the key stays taken after the job has settled, until its row is pruned.
            using: the database alias to write to; by default the one whose transaction is open.
            transactional: False writes on a connection of its own, so that the job stays though the caller rolls back.
            options: Celery's others: ``queue``, ``priority``, ``headers`` … (task/options.py).

        Returns:
            The job's result. Its ``id`` is the job's.

        Raises:
            TypeError: the arguments don't fit the task's signature.
            reliable_jobs.errors.EnqueueError: unserialisable or oversized arguments, a key or task id in use for
                something else, transactions open on two databases. Nothing was written.

        Example::

            send_receipt.apply_async((order.pk,), key=f"receipt-{order.pk}", countdown=60, queue="mail")
        """
        if self.is_generator:
            self._refuse_generator()
        app = self.app
        if app.conf.task_always_eager:
            times = {"countdown": countdown, "eta": eta, "expires": expires}
            given = {name: value for name, value in times.items() if value is not None}
            return super().apply_async(args, kwargs, task_id, None, link, link_error, shadow, **options, **given)
        unit = stages.unit.begun()
        if unit is not None:
            # What follows a job is written where its settlement is; a group's calls in one transaction.
            using, transactional = unit.using, True
            options = unit.with_lineage(options)  # type: ignore[assignment, arg-type] # a TypedDict, copied
        job_id = uuid.uuid4() if task_id is None else self._given_id(task_id)
        text = None if key is None else as_key(key)
        if key is not None and text is None:
            raise InvalidOption(
                f"{self.name}: key={key!r} must be a string of 1 to 255 characters without NUL, a whole number or a "
                "UUID."
            )
        spelled = str(job_id if task_id is None else task_id)
        usual = task_id is None or spelled == str(job_id)
        rendered = self._render(args, kwargs, job_id if usual else spelled, link, link_error, shadow, options)
        request = stages.insert.Request(
            job_id,
            rendered,
            key=text,
            key_forever=key_forever,
            id_given=task_id is not None,
            **(unit.marks if unit is not None else {"follows": task_id is not None and self._follows_a_job()}),
            **self._times(countdown, eta, expires),
        )
        written = stages.outbox.enqueue(app, request, using=using, transactional=transactional)
        result = self.AsyncResult(spelled if written == job_id else str(written))
        result.ignored = bool(options.get("ignore_result", self.ignore_result))
        parent = app.current_worker_task
        if parent and options.get("add_to_parent", True):
            parent.add_trail(result)
        return result

    def bulk_delay(
        self, calls: Iterable[tuple[Any, ...] | list[Any] | dict[str, Any]], **options: Unpack[BulkOptions]
    ) -> list[str]:
        """Enqueue many calls at once: all of them with the transaction, or none. Thousands take a COPY on PostgreSQL
        and INSERTs of many rows elsewhere.

        Args:
            calls: for each job its positional arguments (a tuple or list), or its keyword arguments (a dict).
            options: for all of them, as :meth:`apply_async` takes them, but what is one job's own. A subclass's own
                ``apply_async`` is called for each job; its own ``delay`` too, and then there may be no options.

        Returns:
            The jobs' ids in the order of the calls. ``self.AsyncResult(id)`` makes a result of one.

        Raises:
            TypeError: arguments don't fit the task's signature, or a call is neither a sequence nor a dict.
            reliable_jobs.errors.EnqueueError: as :meth:`apply_async`; InvalidOption for an option of one job's own.
                Nothing was written.

        Example::

            send_receipt.bulk_delay(((pk,) for pk in range(1000)), queue="mail", countdown=60)
        """
        refused = {"task_id", "key", "key_forever", "transactional", "shadow"} & set(options)
        if refused:
            raise InvalidOption(
                f"{self.name}: bulk_delay takes no {' or '.join(sorted(refused))}; call apply_async for each such job."
            )
        app = self.app
        if self.is_generator:
            self._refuse_generator()
        pairs: Iterator[tuple[Any, Any]] = map(functools.partial(stages.bulk.arguments_of, self.name), calls)
        first = next(pairs, None)
        if first is None:
            return []
        own_delay = getattr(self.delay, "__func__", None) is not Task.delay
        if own_delay and options:
            raise InvalidOption(
                f"{self.name}: bulk_delay can't pass {', '.join(sorted(options))} through the task's own delay(). "
                "Override apply_async() instead, which takes options, or leave them out."
            )
        rest: dict[str, Any] = {**options}
        using, usual_name = stages.databases.of_new_job(rest.pop("using", None))
        times = {name: rest.pop(name, None) for name in ("countdown", "eta", "expires")}
        pairs = itertools.chain([first], pairs)

        def singly(args: Any, kwargs: Any) -> str:
            if own_delay:
                return str(self.delay(*args, **kwargs).id)
            return str(self.apply_async(args, kwargs, using=using, **times, **rest).id)

        with transaction.atomic(using=using):
            ours = not own_delay and getattr(self.apply_async, "__func__", None) is Call.apply_async
            safe = ours and not app.conf.task_always_eager and is_safe(self, super().apply_async)
            template = Template.make(self, *first, **rest) if safe else None
            if template is None:
                return [singly(*pair) for pair in pairs]
            blocks = stages.bulk.Blocks(template, self._check_arguments, pairs)
            request = stages.insert.Request(uuid.uuid4(), template.rendered, **self._times(**times))
            ids = stages.outbox.enqueue_many(app, request, template, blocks, using, usual_name)
            for number, pair in blocks.odd():
                ids.insert(number, singly(*pair))
            return ids

    def _given_id(self, task_id: Any) -> uuid.UUID:
        found = as_uuid(task_id)
        if found is None:
            raise InvalidOption(
                f"{self.name}: task_id={task_id!r} is not a UUID. For a natural id use key={task_id!r}: the same key "
                "is the same job."
            )
        return found

    def _render(
        self,
        args: Any,
        kwargs: Any,
        task_id: uuid.UUID | str,
        link: Any,
        link_error: Any,
        shadow: str | None,
        options: Any,
    ) -> Rendered:
        args, kwargs = () if args is None else args, {} if kwargs is None else kwargs
        plain = not options and not link and not link_error and not shadow
        plain = plain and isinstance(args, (list, tuple)) and isinstance(kwargs, dict)
        # An id that is a text is to be spelled so in its message.
        if plain and isinstance(task_id, uuid.UUID):
            template = template_of(self, super().apply_async, args, kwargs)
            if template is not None:
                # Not before: an apply_async between this one and Celery's may add arguments.
                self._check_arguments(args, kwargs)
                filled = template.fill(task_id, args, kwargs)
                if filled is not None:
                    return filled
        capture = Capture()
        self.render_into(capture, args, kwargs, str(task_id), link, link_error, shadow, **options)
        if capture.rendered is None:
            raise InvalidOption(f"{self.name}: Celery did not render a message; is apply_async overridden?")
        return capture.rendered

    def render_into(
        self,
        capture: Capture,
        args: Any,
        kwargs: Any,
        task_id: str,
        link: Any = None,
        link_error: Any = None,
        shadow: str | None = None,
        **options: Any,
    ) -> None:
        """Have Celery make the message, with its times left out: they live in the row."""
        options = {name: value for name, value in options.items() if name not in ("connection", "publisher")}
        if self.sensitive:
            shown = self._shown(args or (), kwargs or {})
            options.update(argsrepr=shown[0], kwargsrepr=shown[1])
            capture.sensitive = True
        # Celery need not publish again what is only written down.
        options.update(countdown=None, eta=None, expires=None, add_to_parent=False, retry=False)
        capture.follows = self._follows_a_job()
        leave_unsubscribed(self.app.backend, Capture)
        try:
            super().apply_async(args, kwargs, task_id, capture, link, link_error, shadow, **options)
        except EnqueueError:
            raise
        except (ValueError, RecursionError) as error:
            # Of a number with thousands of digits, or a list in a list in a list: making its text fails first.
            raise UnserialisableArguments(
                f"{self.name}: the call can't be written as a message ({type(error).__name__}: {error}). "
                "Pass a primary key, a URL or plain data."
            ) from error

    def _follows_a_job(self) -> bool:
        """Whether Celery or the settlement of a job makes this call, not a task function. A plain task's own calls
        can't be told from what Celery starts for it."""
        unit = stages.unit.current()
        if unit is not None:
            return unit.follows
        parent = self.app.current_worker_task
        if parent is None:
            return False
        run = parent.request.get("reliable_run")
        return run is None or not run.open

    def AsyncResult(self, task_id: str, **kwargs: Any) -> JobResult[R_co]:
        """The result of a job of this task: its row answers first, then the result backend.

        Args:
            task_id: the job's id, as ``delay().id`` or ``bulk_delay()`` gave it.
            kwargs: as Celery's ``AsyncResult`` takes them.

        Example::

            send_receipt.AsyncResult(str(job.pk)).ready()
        """
        kwargs.setdefault("backend", OfTask(self))
        return stages.results.JobResult(task_id, app=self.app, task_name=self.name, **kwargs)
