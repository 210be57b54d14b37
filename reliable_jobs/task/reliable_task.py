"""``ReliableTask``: a Celery task whose calls are rows and whose runs are settled with their effects."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from celery import Celery, Task
from celery.exceptions import SoftTimeLimitExceeded
from django.db import transaction

from reliable_jobs.compat import celery_app
from reliable_jobs.compat.celery_results import take_own_backend
from reliable_jobs.conf import settings
from reliable_jobs.run import pools
from reliable_jobs.run.trail import TRAIL
from reliable_jobs.task import function, guards, stages
from reliable_jobs.task.call import Call
from reliable_jobs.task.replacing import Replacing
from reliable_jobs.task_types import REQUEST, P, R_co


class ReliableTask(Replacing, Call[P, R_co]):
    """Base class: ``@shared_task(base=ReliableTask)``, ``@app.task(base=ReliableTask)``, or a subclass with ``run``.
    For a whole app see :class:`~reliable_jobs.task.adopted_task.AdoptedTask`.

    ``delay()`` and ``apply_async()`` write a job in the current transaction and return the usual ``AsyncResult``. All
    of Celery's task attributes keep their meaning; these are new:

    Attributes:
        atomic: run the task function in one transaction with the job's settlement, so that its database effects happen
            exactly once. Set it to False for functions that wait for the network or report progress; then use
            :meth:`fenced`.
        reruns: whether a run that died, or was broken off by its database, is begun again, ``MAX_CRASHES`` times at
            most. False: such a job is failed.
        retry_window: seconds after the first start within which retries may begin. With it, Celery's default
            ``max_retries`` of 3 no longer applies; one that you set does.
        bundle: how many jobs of this task may travel in one message and share one transaction, at most 100; for small
            atomic functions. One that fails is rolled back and run alone. See docs/how-to.md.
        sensitive: True, or the names of the arguments that no admin page, log line or error may show.

    Example::

        class Invoice(ReliableTask):
            name = "shop.invoice"
            max_retries = 5

            def run(self, order_id: int) -> str:
                return f"invoice {order_id}"

        invoice = app.register_task(Invoice())
    """

    acks_late = True
    reject_on_worker_lost = True
    #: Celery 5.7's. A killed worker's message goes back to the broker, and the row counts; nothing is published anew.
    retry_on_worker_lost = False
    Request = REQUEST

    atomic: bool = True
    reruns: bool = True
    retry_window: float | None = None
    bundle: int = 1
    sensitive: bool | Iterable[str] = ()

    #: Tells workflow/capture.py, results/backend.py and others that a call of this task becomes a row.
    writes_outbox: ClassVar[bool] = True
    #: Tells run/kept_connections.py not to close the worker's database connections around it.
    keeps_connections: ClassVar[bool] = True
    _tracer: Any = None
    _answering_tracer: Any = None

    @classmethod
    def on_bound(cls, app: Celery) -> None:
        """Celery's hook: a task of the class meets the app that it belongs to."""
        super().on_bound(app)
        celery_app.adopt(app)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        take_own_backend(cls)
        function.adopt(cls)
        guards.guard(cls)

    # --- its result ---------------------------------------------------------------------------------------------------

    @property
    def backend(self) -> Any:
        """The result backend that answers by the rows, around the task's own or the app's."""
        backend = Task.backend.fget(self)
        try:
            return stages.results.LedgerBackend.around(backend, self.app)
        except SoftTimeLimitExceeded:
            raise
        except Exception:  # Celery's tracer asks, and must go on; Django's apps may not be loaded yet
            return backend

    @backend.setter
    def backend(self, backend: Any) -> None:
        Task.backend.fset(self, backend)

    # --- run ----------------------------------------------------------------------------------------------------------

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """In a worker: one delivery of a job, run to its settlement. Called directly or eagerly: just the
        function, for an atomic task in a transaction when eager."""
        request = self.request
        # Without a call: what fails in one would be told as the job's failure.
        info = request.delivery_info
        trail = info.get(TRAIL) if isinstance(info, dict) else None
        if trail is not None and not trail.reached:
            return stages.delivery.deliver(self, args, kwargs)
        bundled, run = request.get("reliable_bundle"), request.get("reliable_run")
        if bundled is not None and (run is None or not run.open):
            return bundled.run_function(self, args, kwargs)
        if request.called_directly or self._run_in_progress() is not None:
            # The second: a function that calls its own task (recursion) while a worker runs it.
            return super().__call__(*args, **kwargs)
        if request.is_eager:
            if not self.atomic:
                return self.value_of(args, kwargs)
            with transaction.atomic(using=stages.databases.write_alias()):
                return self.value_of(args, kwargs)
        return stages.delivery.deliver(self, args, kwargs)

    @property
    def __trace__(self) -> Any:
        """What Celery calls for each message; its workers set it too."""
        # Inside a bundle trace_task() answers, and the stack is wanted for the neighbours.
        return self._tracer if self.request.get("reliable_bundle") is not None else self._answering_tracer

    @__trace__.setter
    def __trace__(self, tracer: Any) -> None:
        self._tracer = tracer
        self._answering_tracer = stages.tracing.that_answers(self, tracer) if tracer is not None else None

    def run_deadline(self) -> float:
        """Seconds after which a non-atomic run's lease is not extended any more.

        A time limit that the worker's pool does not enforce is none: the function runs on, and must keep its lease.
        """
        limit = (self.request.timelimit or (None, None))[0] or self.time_limit
        if not pools.enforces_hard_limit():
            limit = None
        return float(limit) + settings.LEASE if limit else float(settings.RUN_DEADLINE)


class RetriedTask(ReliableTask[P, R_co]):
    """Retries every error with exponential back-off and jitter (up to 1, 2, 4 … 600 seconds), ``max_retries`` times at
    most.

    Example::

        @reliable_task(base=RetriedTask, max_retries=8)
        def deliver(address: str) -> None: ...
    """

    autoretry_for = (Exception,)
    retry_backoff = True
    retry_backoff_max = 600
    retry_jitter = True


class TenHourTask(RetriedTask[P, R_co]):
    """Keeps trying for ten hours from the first start, as :class:`RetriedTask` does.

    Example::

        @reliable_task(base=TenHourTask, dont_autoretry_for=(ValueError,))
        def deliver_webhook(delivery_id: int) -> None: ...
    """

    retry_window = 10 * 3600


class DayLongTask(RetriedTask[P, R_co]):
    """Keeps trying for 24 hours from the first start, as :class:`RetriedTask` does.

    Example::

        @reliable_task(base=DayLongTask)
        def report_to_the_bank(day: str) -> None: ...
    """

    retry_window = 24 * 3600
