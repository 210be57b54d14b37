"""OpenTelemetry: one trace from the caller through outbox and broker to each attempt, and metrics.

The spans of call and run are those of OpenTelemetry's own Celery instrumentation. Its trace context is a header of the
message, which the outbox keeps with the row: sends by a sweeper, retries and requeues continue the same trace. What is
added here is what it can't see: for how long a job waited, which attempt it is, and runs that never reported.

Needs no loaded apps: ``opentelemetry-instrument`` loads it before Django is set up.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Collection
from typing import Any

from celery import current_task
from django.dispatch import Signal
from opentelemetry import metrics, propagate, trace
from opentelemetry.context import Context
from opentelemetry.instrumentation.celery import CeleryInstrumentor
from opentelemetry.instrumentation.instrumentor import BaseInstrumentor

from reliable_jobs import __version__, signals

PREFIX = "reliable_jobs."


class ReliableJobsInstrumentor(BaseInstrumentor):
    """Switches it on, and Celery's instrumentation where that is off: in each process that enqueues or runs jobs, once
    its providers are set. In a prefork pool that is Celery's ``worker_process_init``, as OpenTelemetry wants it.

    Example::

        ReliableJobsInstrumentor().instrument()
    """

    def instrumentation_dependencies(self) -> Collection[str]:
        return ["celery >= 5.5"]

    def _instrument(self, **options: Any) -> None:
        if not CeleryInstrumentor().is_instrumented_by_opentelemetry:
            CeleryInstrumentor().instrument(**options)
        tracer = trace.get_tracer(__name__, __version__, options.get("tracer_provider"))
        meter = metrics.get_meter(__name__, __version__, options.get("meter_provider"))
        spans = _Spans(tracer)
        self._connected = [
            (signals.job_started, spans.started),
            (signals.job_rescued, spans.rescued),
            (signals.job_parked, spans.parked),
            *_measured(meter),
        ]
        for signal, receive in self._connected:
            signal.connect(receive, weak=False)

    def _uninstrument(self, **options: Any) -> None:
        """Celery's instrumentation stays as it is."""
        for signal, receive in self._connected:
            signal.disconnect(receive)


class _Spans:
    def __init__(self, tracer: trace.Tracer) -> None:
        self._tracer = tracer

    def started(self, *, job_id: uuid.UUID, task: str, attempt: int, wait: float, **about: Any) -> None:
        said = _attributes(job_id, task, **about)
        run = trace.get_current_span()
        run.set_attributes({**said, f"{PREFIX}attempt": attempt, f"{PREFIX}wait": wait})
        now = time.time_ns()
        began = now - int(max(0.0, wait) * 1e9)
        span = self._tracer.start_span(
            f"wait/{task}",
            _context(current_task.request if current_task else {}),
            attributes={**said, f"{PREFIX}attempt": attempt},
            start_time=began,
        )
        span.end(now)

    def rescued(self, **said: Any) -> None:
        self._unseen("rescued", **said)

    def parked(self, *, final: bool, **said: Any) -> None:
        self._unseen("parked" if final else "handed back", **said)

    def _unseen(self, what: str, *, job_id: uuid.UUID, task: str, using: str, detail: str, **about: Any) -> None:
        """A run of which no span has come, or that there was not: one that says so, in the job's trace."""
        from reliable_jobs.message.row_to_message import headers_of
        from reliable_jobs.models import Job

        job = Job.objects.using(using).filter(pk=job_id).only("envelope").first()
        context = _context(headers_of(job.envelope) if job else {})
        said = _attributes(job_id, task, using=using, **about)
        with self._tracer.start_as_current_span(f"{what}/{task}", context, attributes=said) as span:
            span.set_status(trace.StatusCode.ERROR, detail)


def _attributes(job_id: uuid.UUID, task: str, *, queue: str, using: str, **more: Any) -> dict[str, str]:
    said = {"job": str(job_id), "task": task, "queue": queue, "database": using}
    return {PREFIX + name: value for name, value in said.items()}


def _context(headers: Any) -> Context:
    """The caller's, as the message's headers have it."""
    fields = propagate.get_global_textmap().fields
    carrier = {name: value for name in fields if isinstance(value := headers.get(name), str)}
    return propagate.extract(carrier, Context())


def _measured(meter: metrics.Meter) -> list[tuple[Signal, Any]]:
    """Signals, each with a receiver that counts."""
    names = ("enqueued", "published", "started", "settled", "rescued", "parked")
    counters = {name: meter.create_counter(f"{PREFIX}{name}", "{job}") for name in names}
    wait = meter.create_histogram(f"{PREFIX}wait", "s", "From a job's due time to its claim.")
    run = meter.create_histogram(f"{PREFIX}run", "s", "From a job's last claim to its settlement.")

    def receiver(name: str) -> Any:
        def receive(*, task: str, queue: str, **said: Any) -> None:
            about = {"task": task, "queue": queue}
            counters[name].add(1, {**about, "status": said["status"]} if name == "settled" else about)
            if name == "started":
                wait.record(max(0.0, said["wait"]), about)
            if name == "settled" and said["seconds"] is not None:
                run.record(said["seconds"], about)

        return receive

    return [(getattr(signals, f"job_{name}"), receiver(name)) for name in counters]
