"""OpenTelemetry: one trace from the caller to each attempt and its effects, no span twice, and metrics."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from celery import shared_task
from django.db import transaction
from opentelemetry import trace
from opentelemetry.instrumentation.celery import CeleryInstrumentor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from reliable_jobs import ReliableTask, lifecycle
from reliable_jobs.models import Job
from reliable_jobs.run import kept_connections
from reliable_jobs.telemetry.opentelemetry import ReliableJobsInstrumentor
from reliable_jobs.testing import override_dispatch
from tests.support import inprocess
from tests.support.inprocess import InProcess
from tests.support.rows import past
from tests.testapp import tasks

jobs = inprocess.jobs


class Told:
    """What was exported."""

    def __init__(self) -> None:
        self.exporter, self.reader = InMemorySpanExporter(), InMemoryMetricReader()
        self.tracers = TracerProvider()
        self.tracers.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.meters = MeterProvider([self.reader])
        self.request = self.tracers.get_tracer("site").start_as_current_span("request")
        self.effect = self.tracers.get_tracer("site")

    def spans(self, name: str) -> list[Any]:
        return [span for span in self.exporter.get_finished_spans() if span.name.split("/")[0] == name]

    def names(self) -> list[str]:
        return [span.name.split("/")[0] for span in self.exporter.get_finished_spans()]

    def measured(self) -> dict[str, float]:
        data = self.reader.get_metrics_data()
        found: dict[str, float] = {}
        for metric in (one for of in data.resource_metrics for scope in of.scope_metrics for one in scope.metrics):
            for point in metric.data.data_points:
                key = ".".join([metric.name, *([point.attributes["status"]] if "status" in point.attributes else [])])
                found[key] = found.get(key, 0) + getattr(point, "value", getattr(point, "count", 0))
        return found


@pytest.fixture
def told() -> Iterator[Told]:
    found = Told()
    ReliableJobsInstrumentor().instrument(tracer_provider=found.tracers, meter_provider=found.meters)
    yield found
    ReliableJobsInstrumentor().uninstrument()
    CeleryInstrumentor().uninstrument()
    found.meters.shutdown()


@shared_task(base=ReliableTask, bind=True, max_retries=2)
def traced(self: Any, fail: int = 0) -> None:
    trace.get_current_span().add_event("effect")
    if self.request.retries < fail:
        raise self.retry(countdown=0)


@shared_task(base=ReliableTask)
def branches() -> None:
    traced.delay()


def test_a_retried_job_is_one_trace_with_each_attempt_once(jobs: InProcess, told: Told) -> None:
    with told.request as request, transaction.atomic():
        job = traced.delay(1)
    jobs.finish()
    spans = told.exporter.get_finished_spans()
    assert {span.context.trace_id for span in spans} == {request.get_span_context().trace_id}
    assert sorted(told.names()) == ["apply_async", "request", "run", "run", "wait", "wait"]
    (call,) = told.spans("apply_async")
    assert call.parent.span_id == request.get_span_context().span_id
    for name in ("run", "wait"):
        assert [span.parent.span_id for span in told.spans(name)] == [call.context.span_id] * 2
        assert [span.attributes["reliable_jobs.attempt"] for span in told.spans(name)] == [1, 2]
    first = told.spans("run")[0]
    assert first.attributes["reliable_jobs.job"] == job.id
    assert first.attributes["reliable_jobs.queue"] == jobs.queue
    assert [event.name for event in first.events] == ["effect"]
    waited = told.spans("wait")[0]
    assert waited.start_time <= waited.end_time
    assert waited.end_time - waited.start_time == pytest.approx(first.attributes["reliable_jobs.wait"] * 1e9, abs=1e6)


def test_a_job_that_a_sweeper_sends_stays_in_its_trace(jobs: InProcess, told: Told) -> None:
    with told.request as request, override_dispatch():
        traced.delay()
    Job.objects.update(sends=0)
    jobs.finish()
    (run,) = told.spans("run")
    assert run.context.trace_id == request.get_span_context().trace_id


def test_what_a_job_enqueues_continues_its_trace(jobs: InProcess, told: Told) -> None:
    with told.request as request:
        branches.delay()
    jobs.finish()
    assert len(told.spans("run")) == 2
    assert {span.context.trace_id for span in told.spans("run")} == {request.get_span_context().trace_id}


def test_a_run_that_died_and_a_parked_job_have_a_span_that_says_so(jobs: InProcess, told: Told) -> None:
    with told.request as request:
        job = jobs.row(traced.delay())
    dead = {"status": "running", "lease_at": past(), "worker": "w1 pid 7 #1"}
    Job.objects.filter(pk=job.pk).update(token=uuid.uuid4(), crashes=1, **dead)
    jobs.sweep()
    for _ in range(2):
        lifecycle.hand_back(job.pk, "default", worker="w1", why="unknown task", delay=0.0)
        Job.objects.update(deadline_at=past())
    for name, words in (("rescued", "w1 pid 7"), ("handed back", "unknown task"), ("parked", "unknown task")):
        (span,) = told.spans(name)
        assert span.context.trace_id == request.get_span_context().trace_id
        assert span.status.status_code is trace.StatusCode.ERROR
        assert words in span.status.description


def test_a_bundles_jobs_are_each_in_the_trace_of_their_own_call(
    jobs: InProcess, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_connections, "active", True)
    calls = {}
    with transaction.atomic():
        for number in range(3):
            with told.effect.start_as_current_span("caller") as span:
                calls[small.delay(number).id] = span.get_span_context().trace_id
    jobs.finish()
    runs = [span for span in told.spans("run") if span.name == f"run/{small.name}"]
    assert {span.attributes["reliable_jobs.job"]: span.context.trace_id for span in runs} == calls
    assert len(runs) == 3


@shared_task(base=ReliableTask, bundle=4)
def small(number: int) -> None:
    pass


def test_jobs_are_counted_and_timed(jobs: InProcess, told: Told) -> None:
    tasks.effect.delay("one")
    tasks.fails.delay("two")
    jobs.finish()
    found = {name: value for name, value in told.measured().items() if name.startswith("reliable_jobs.")}
    assert found == {
        **{f"reliable_jobs.{name}": 2 for name in ("enqueued", "published", "started", "wait", "run")},
        **{f"reliable_jobs.settled.{status}": 1 for status in ("succeeded", "failed")},
    }


def test_no_argument_is_in_a_span(jobs: InProcess, told: Told) -> None:
    tasks.login.delay("ann", "s3cret-value")
    jobs.finish()
    assert "s3cret-value" not in "".join(span.to_json() for span in told.exporter.get_finished_spans())


@shared_task(base=ReliableTask)
def says(word: str) -> str:
    return f"{word}-said"


@pytest.mark.parametrize("foreign", [False, True])
def test_no_result_and_nothing_that_follows_is_in_a_span(jobs: InProcess, told: Told, foreign: bool) -> None:
    """Celery's instrumentation writes the whole delivery_info of a request into the run's span."""
    if foreign:
        jobs.deliver(jobs.foreign(says.name, ["s3cret"]))
    else:
        says.apply_async(
            ("a-s3cret",), link=tasks.login.si("ann", "b-s3cret"), link_error=tasks.login.si("ann", "c-s3cret")
        )
        jobs.finish()
    assert told.spans("run")
    assert "s3cret" not in "".join(span.to_json() for span in told.exporter.get_finished_spans())


def test_where_celery_is_instrumented_already_no_span_is_doubled(
    jobs: InProcess, told: Told, caplog: pytest.LogCaptureFixture
) -> None:
    ReliableJobsInstrumentor().uninstrument()
    assert CeleryInstrumentor().is_instrumented_by_opentelemetry
    ReliableJobsInstrumentor().instrument(tracer_provider=told.tracers, meter_provider=told.meters)
    traced.delay()
    jobs.finish()
    assert sorted(told.names()) == ["apply_async", "run", "wait"]
    assert "already instrumented" not in caplog.text
