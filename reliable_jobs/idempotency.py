"""For tasks that come by plain Celery messages: ``send_task`` of another program, another language, a producer that is
not adopted yet. Such a message may be sent twice under two task ids, so its id says nothing; what it is *about* does.

- :class:`GetOrCreateTask` and :class:`UpdateOrCreateTask`: the work is one row of a model, unique by constraint.
- :class:`IdempotentTask`: any body, once per natural key; further messages get the stored result of the first.
- :func:`once`: the same for a body that is no reliable task at all.

The last two remember a key as long as the row that holds it: ``RELIABLE_JOBS["RETENTION"]["succeeded"]`` days (7 by
default). Where a repetition may come later than that, keep the fact in a model of your own, as the first two do.
"""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeVar

from celery.result import AsyncResult
from celery.utils.functional import head_from_fun
from django.core.exceptions import ImproperlyConfigured
from django.db import IntegrityError, models, transaction
from django.db.models.functions import Now
from kombu.serialization import dumps, loads

from reliable_jobs import keys, outbox
from reliable_jobs.delivery import result_of
from reliable_jobs.errors import InvalidOption, KeyBusy
from reliable_jobs.message import ENVELOPE_VERSION
from reliable_jobs.models import Job
from reliable_jobs.status import Status
from reliable_jobs.task import ReliableTask

T = TypeVar("T")

#: Seconds until a message looks again whose key belongs to a job that has not ended.
BUSY_DELAY = 2.0
_KEY_ROUNDS = 3


# --- one row of a model -----------------------------------------------------------------------------------------------


class GetOrCreateTask(ReliableTask):
    """Makes one row of a model unless it is there::

        class OpenAccount(GetOrCreateTask):
            name = "shop.open_account"
            model = Account

            def lookup(self, customer_id, plan):
                return {"customer_id": customer_id}

            def defaults(self, customer_id, plan):
                return {"plan": plan}

        open_account = app.register_task(OpenAccount())

    The result is ``{"pk": …, "created": …}``. However many messages come, and however many run at once, there is one
    row; the model's own unique constraint sees to it, so the lookup must name the fields of one.

    Raises:
        django.core.exceptions.ImproperlyConfigured: it does not, or there is no model.
    """

    abstract = True
    model: ClassVar[type[models.Model] | None] = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "lookup" in vars(cls):
            # The task's signature is that of lookup(): run() takes anything and could not tell a wrong call.
            cls.__header__ = staticmethod(head_from_fun(vars(cls)["lookup"], bound=True))

    def lookup(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """What identifies the row: field names and values. Gets the task's arguments."""
        raise NotImplementedError(
            f"{self.name}: define lookup() with the task's arguments; it returns the unique fields."
        )

    def defaults(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The other fields of the row. Gets the task's arguments."""
        return {}

    def run(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        found, created = self._write(self._manager(), self.lookup(*args, **kwargs), self.defaults(*args, **kwargs))
        return {"pk": found.pk, "created": created}

    def _write(self, manager: Any, lookup: dict[str, Any], defaults: dict[str, Any]) -> tuple[models.Model, bool]:
        self._require_constraint(lookup)
        found: tuple[models.Model, bool] = manager.get_or_create(**lookup, defaults=defaults)
        return found

    def _manager(self) -> Any:
        if self.model is None:
            raise ImproperlyConfigured(f"{self.name}: set model to the model whose row this task makes.")
        return self.model._default_manager

    def _require_constraint(self, lookup: Mapping[str, Any]) -> None:
        if not _unique(self.model, lookup):
            raise ImproperlyConfigured(
                f"{self.name}: lookup() names {', '.join(lookup) or 'nothing'}, and no unique constraint of "
                f"{self.model.__name__ if self.model else self.model} covers that: two messages at once would make two "
                "rows. Add a UniqueConstraint on these fields."
            )


class UpdateOrCreateTask(GetOrCreateTask):
    """As :class:`GetOrCreateTask`; a row that is there gets the values of ``defaults()``, so the last message wins."""

    abstract = True

    def _write(self, manager: Any, lookup: dict[str, Any], defaults: dict[str, Any]) -> tuple[models.Model, bool]:
        self._require_constraint(lookup)
        found: tuple[models.Model, bool] = manager.update_or_create(**lookup, defaults=defaults)
        return found


def _unique(model: Any, lookup: Mapping[str, Any]) -> bool:
    meta = model._meta
    named = set()
    for name in lookup:
        plain = name.removesuffix("__exact")
        if "__" not in plain:
            named.add(meta.pk.name if plain == "pk" else meta.get_field(plain).name)
    single = [{field.name} for field in meta.concrete_fields if field.unique or field.primary_key]
    together = [set(names) for names in meta.unique_together]
    constraints = [item for item in meta.constraints if isinstance(item, models.UniqueConstraint)]
    if any(item.expressions for item in constraints):
        return True  # e.g. on Lower("email"): whether the lookup means that one can't be told here
    return any(fields <= named for fields in [*single, *together, *(set(item.fields) for item in constraints)])


# --- any body, once per natural key -----------------------------------------------------------------------------------


class IdempotentTask(ReliableTask):
    """Runs its body once per natural key, whichever message asks and under whatever task id::

        class PerOrder(IdempotentTask):
            def natural_key(self, order_id):
                return f"order-{order_id}"

        @shared_task(base=PerOrder)
        def ship(order_id): ...

    The database effects of the body happen once; every further message with the key settles as succeeded with the same
    stored result. One that comes while the first still runs or waits is looked at again some seconds later. A key whose
    job failed, was cancelled or expired is free again. ``delay()`` and ``apply_async()`` enqueue under the key, so they
    return the job that has it.

    The body must be atomic: the key is taken in the transaction of its effects.
    """

    abstract = True

    def natural_key(self, *args: Any, **kwargs: Any) -> str:
        """What the work is about, 1 to 255 characters, unique within the task. Gets the task's arguments."""
        raise NotImplementedError(f"{self.name}: define natural_key() with the task's arguments.")

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not cls.atomic:
            raise TypeError(
                f"{cls.__name__}: an IdempotentTask can't have atomic = False; its key is taken in the transaction of "
                "its effects. Use apply_async(key=…), or once() around the part that writes."
            )
        if "run" in vars(cls):
            cls.run = _guarded(vars(cls)["run"])

    def apply_async(self, args: Any = None, kwargs: Any = None, *positional: Any, **options: Any) -> AsyncResult[Any]:
        """As :meth:`ReliableTask.apply_async`, under the natural key.

        Raises:
            InvalidOption: another ``key`` was given.
        """
        key = self._checked_key(args or (), kwargs or {})
        if options.setdefault("key", key) != key:
            raise InvalidOption(f"{self.name}: key={options['key']!r} is not the natural key {key!r}; leave it out.")
        options.setdefault("key_forever", True)
        return super().apply_async(args, kwargs, *positional, **options)

    def _checked_key(self, args: Any, kwargs: Any) -> str:
        key = self.natural_key(*args, **kwargs)
        if not isinstance(key, str) or not 0 < len(key) <= 255:
            raise InvalidOption(
                f"{self.name}: natural_key() returned {key!r}; it must be a string of 1 to 255 characters."
            )
        return key

    def _once(self, body: Callable[[], Any], args: Any, kwargs: Any) -> Any:
        run = self._run_in_progress()
        if run is None:
            return body()  # called directly, or eager: there is no row
        key = self._checked_key(args, kwargs)
        job, using = run.claim.job, run.claim.using
        if job.live_key == key:
            return body()
        try:
            holder = _take_key(job, key, using)
        except KeyBusy:
            raise self.snooze(BUSY_DELAY) from None
        if holder is None:
            return body()
        if holder.status == Status.SUCCEEDED:
            return result_of(holder)
        raise self.snooze(BUSY_DELAY)


def _guarded(run: Any) -> Any:
    """The task's ``run`` behind its natural key; Celery makes a function without ``bind`` a static method."""
    function = run.__func__ if isinstance(run, staticmethod) else run

    @functools.wraps(function)
    def guarded(self: IdempotentTask, *args: Any, **kwargs: Any) -> Any:
        own = args if isinstance(run, staticmethod) else (self, *args)
        return self._once(lambda: function(*own, **kwargs), args, kwargs)

    if isinstance(run, staticmethod):
        signature = inspect.signature(function)
        first = inspect.Parameter("_task", inspect.Parameter.POSITIONAL_ONLY)
        guarded.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=[first, *signature.parameters.values()]
        )
    return guarded


def _take_key(job: Job, key: str, using: str) -> Job | None:
    """Put the key on a running job's row, in the transaction of its body; a body that fails gives it back with that.

    Returns the job that has the key, or None when this one has it now.

    Raises:
        KeyBusy: another open transaction has it, and has not ended in some seconds.
    """
    rows = Job.objects.using(using)
    for _ in range(_KEY_ROUNDS):
        try:
            with transaction.atomic(using=using), keys.bounded_wait(using, job.task, key):
                rows.filter(pk=job.pk).update(key=key, live_key=key, key_forever=True)
            return None
        except IntegrityError:
            holder = rows.filter(task=job.task, live_key=key).first()
        if holder is None:
            continue  # its transaction was undone
        if holder.status not in (Status.FAILED, Status.CANCELLED, Status.EXPIRED):
            return holder
        # Nothing was done under the key. Its job can be requeued while no other has the key.
        rows.filter(pk=holder.pk, status=holder.status, live_key=key).update(live_key=None)
    raise KeyBusy(f"{job.task}: key {key!r} changed hands {_KEY_ROUNDS} times.")


# --- without a reliable task ------------------------------------------------------------------------------------------


def once(key: str, work: Callable[[], T], *, scope: str, using: str | None = None) -> T:
    """Call ``work`` once per key, in one transaction with the receipt, and return its result; a further call returns
    the stored result and does nothing. It needs no reliable task, and no task at all::

        @shared_task                                  # a plain Celery task
        def import_invoice(number):
            return once(number, lambda: book(number), scope="shop.import_invoice")

    If ``work`` raises, nothing is kept and the next call tries again. A call that comes while another one works waits
    for it. Inside an open transaction the receipt commits, or is undone, with that.

    Args:
        key: what the work is about, 1 to 255 characters.
        work: called without arguments; must return what JSON takes.
        scope: what kind of work it is, up to 250 characters: the same key under another scope is other work.
        using: the database alias; by default that of the open transaction.

    Raises:
        ValueError: key or scope is empty or too long.
        TypeError: the result can't be stored as JSON; the work was undone.
    """
    if not 0 < len(key) <= 255 or not 0 < len(scope) <= 250:
        raise ValueError(f"once(): the key takes 1 to 255 characters and the scope 1 to 250, not {key!r}, {scope!r}.")
    alias = using or outbox.write_alias()
    rows = Job.objects.using(alias)
    name = f"once:{scope}"
    with transaction.atomic(using=alias):
        receipt, created = rows.get_or_create(
            task=name,
            live_key=key,
            defaults={
                "key": key,
                "key_forever": True,
                "status": Status.SUCCEEDED,
                "queue": "",
                "due_at": Now(),
                "started_at": Now(),
                "finished_at": Now(),
                "body": b"[[], {}, {}]",
                "content_type": "application/json",
                "content_encoding": "utf-8",
                "envelope": json.dumps(
                    {
                        "v": ENVELOPE_VERSION,
                        "exchange": "",
                        "routing_key": "",
                        "headers": {"task": name},
                        "properties": {},
                    }
                ),
            },
        )
        if not created:
            done: T = result_of(receipt)
            return done
        value = work()
        try:
            content_type, encoding, text = dumps(value, "json")
        except Exception as error:
            raise TypeError(
                f"once({key!r}): the result ({type(value).__name__}) can't be stored as JSON ({error}). Return plain "
                "data or an id. What the work did in the database was undone."
            ) from error
        rows.filter(pk=receipt.pk).update(result=text)
        stored: T = loads(text, content_type, encoding, accept=[content_type])
        return stored
