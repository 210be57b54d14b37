"""The Celery app of the test suite: ``celery -A tests.celery_app worker``."""

from __future__ import annotations

import os

from celery import Celery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")

app = Celery("reliable_jobs_tests")
app.config_from_object("django.conf:settings", namespace="CELERY")
# The processes of a test run share one broker: what one's tests broadcast is not for the workers of another's.
app.conf.control_exchange = f"celery{os.environ.get('PYTEST_XDIST_WORKER', '')}"
app.autodiscover_tasks()


def use_broker(url: str, queue: str) -> None:
    """Another broker and default queue, from now on and in every thread."""
    values = {"task_default_queue": queue, "task_default_routing_key": queue}
    values.update(dict.fromkeys(("broker_url", "broker_read_url", "broker_write_url"), url))
    for name, value in values.items():
        app.conf[name] = value
        # Up to Celery 5.5 the name as it stands in Django's settings wins.
        app.conf[f"CELERY_{name.upper()}"] = value
    for cached in ("amqp", "control"):
        app.__dict__.pop(cached, None)
    app._pool = None
    app.set_current()
    app.set_default()
