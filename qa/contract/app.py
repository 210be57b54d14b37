"""The app of the worker process: the suite's tasks, of the kind that CONTRACT_RELIABLE says."""

from __future__ import annotations

import os
from typing import Any

import django
from celery import Celery

django.setup()

#: What every app of the suite is made with, in the tests' process and in the worker's.
PARAMETERS: dict[str, Any] = (
    {"task_cls": "reliable_jobs:ReliableTask"} if os.environ["CONTRACT_RELIABLE"] == "1" else {}
)


def made() -> Celery:
    """The suite's app as a worker has it."""
    app = Celery("contract", include=["t.integration.tasks"], **PARAMETERS)
    app.conf.update(
        broker_url=os.environ["TEST_BROKER"],
        result_backend=os.environ["TEST_BACKEND"],
        result_extended=True,
        task_create_missing_queues=False,
        broker_connection_retry_on_startup=True,
    )
    app.set_default()
    app.loader.import_task_module("t.integration.tasks")
    from t.integration.tasks import ClassBasedAutoRetryTask

    app.register_task(ClassBasedAutoRetryTask())
    return app


app = made()
