"""Log records say which job they are about."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from celery import shared_task

from reliable_jobs import ReliableTask
from reliable_jobs.dispatch.answers import Confirms
from reliable_jobs.logs import JobFields
from reliable_jobs.message.row_to_message import RowToSend
from reliable_jobs.models import Job
from reliable_jobs.sweep import unconfirmed
from tests.support import inprocess
from tests.support.inprocess import InProcess
from tests.testapp import tasks

jobs = inprocess.jobs

logger = logging.getLogger("shop.tests")
FIELDS = ("job", "task", "queue", "attempt")


class Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.fixture
def kept() -> Iterator[Kept]:
    """A handler with the filter, as LOGGING would make it."""
    handler = Kept()
    handler.addFilter(JobFields())
    logging.getLogger().addHandler(handler)
    yield handler
    logging.getLogger().removeHandler(handler)


def said_of(record: logging.LogRecord) -> list[object]:
    return [getattr(record, name, None) for name in FIELDS]


@shared_task(base=ReliableTask, bind=True, max_retries=3)
def logs(self: ReliableTask, times: int = 0) -> None:
    logger.warning("in the function")
    if self.request.retries < times:
        raise self.retry(countdown=0)


def test_every_record_in_a_function_names_its_job_and_attempt(jobs: InProcess, kept: Kept) -> None:
    job = logs.delay(1)
    jobs.finish()
    mine = [record for record in kept.records if record.name == "shop.tests"]
    assert [said_of(record) for record in mine] == [[job.id, logs.name, jobs.queue, attempt] for attempt in (1, 2)]


@shared_task
def plain() -> None:
    logger.error("in a plain task")


def test_a_plain_task_whose_message_is_odd_can_still_log(kept: Kept) -> None:
    assert plain.apply(retries="2").successful()
    (record,) = (one for one in kept.records if one.name == logger.name)
    assert said_of(record)[-1] == ""


def test_a_record_about_no_job_has_empty_fields_and_extra_stays(kept: Kept) -> None:
    logger.warning("outside")
    logger.warning("own", extra={"job": "mine"})
    assert [said_of(record) for record in kept.records] == [["", "", "", ""], ["mine", "", "", ""]]


def test_our_own_records_have_the_fields_without_a_filter(jobs: InProcess, caplog: pytest.LogCaptureFixture) -> None:
    @shared_task(base=ReliableTask, bind=True)
    def breaks_its_rollback(self: ReliableTask) -> None:
        self.on_rollback(lambda: 1 / 0)
        raise ValueError("no")

    job = jobs.run(breaks_its_rollback)
    (record,) = [one for one in caplog.records if "on_rollback" in one.getMessage()]
    assert said_of(record) == [str(job.pk), breaks_its_rollback.name, jobs.queue, 1]


def test_a_record_of_the_sweeper_names_the_job_it_is_about(jobs: InProcess, caplog: pytest.LogCaptureFixture) -> None:
    (job,) = RowToSend.each(Job.objects.filter(pk=tasks.effect.delay("nowhere").id))
    unconfirmed.take_back("default", [job], Confirms(returned={job.pk: "NO_ROUTE"}))
    (record,) = [one for one in caplog.records if "not routed" in one.getMessage()]
    assert said_of(record)[:3] == [str(job.pk), tasks.effect.name, jobs.queue]
