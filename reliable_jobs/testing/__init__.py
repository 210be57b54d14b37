"""For the test suites of applications that use reliable_jobs: see what was enqueued, run it, and keep the broker out.

Nothing here needs a broker, a worker or a plugin. In ``unittest`` style::

    @override_dispatch()
    class OrderTests(TestCase):
        def test_a_paid_order_is_shipped(self):
            pay(self.order)
            assert_enqueued(ship, args=[self.order.pk], count=1)
            run_jobs(raise_errors=True)
            self.order.refresh_from_db()
            self.assertTrue(self.order.shipped)

With pytest, switch the broker off for all tests in ``conftest.py``; ``db`` and ``transactional_db`` both work::

    @pytest.fixture(autouse=True)
    def no_broker():
        with override_dispatch():
            yield

``RELIABLE_JOBS = {"DISPATCH": "relay"}`` in the settings of the tests does the same. Without either, an enqueue in
Django's ``TestCase`` still writes its row (that test's transaction never commits, so nothing is published), but
``captureOnCommitCallbacks(execute=True)`` and ``TransactionTestCase`` publish to the configured broker. Calls of tasks
that are not reliable ones are Celery's business: ``CELERY_BROKER_URL = "memory://"`` keeps those off the network.

``CELERY_TASK_ALWAYS_EAGER`` is another thing: calls run at once, in the caller, without a row. Nothing is enqueued
then, so there is nothing to assert or to run; :func:`assert_enqueued` says so.

:func:`crash_at_every_statement` (PostgreSQL, ``TransactionTestCase``) kills a task at each of its statements and
asserts that its effects stay exactly-once.
"""

from __future__ import annotations

from reliable_jobs.testing.assertions import EnqueuedJob, assert_enqueued, enqueued_jobs
from reliable_jobs.testing.crashes import CrashReport, CrashStep, crash_at_every_statement
from reliable_jobs.testing.dispatch import override_dispatch
from reliable_jobs.testing.runner import JobRun, RunReport, run_jobs

__all__ = [
    "CrashReport",
    "CrashStep",
    "EnqueuedJob",
    "JobRun",
    "RunReport",
    "assert_enqueued",
    "crash_at_every_statement",
    "enqueued_jobs",
    "override_dispatch",
    "run_jobs",
]
