"""Tasks whose calls are made by a template."""

from __future__ import annotations

import uuid
from typing import Any

from celery import shared_task
from celery.contrib.django.task import DjangoTask
from hypothesis import strategies as st

from reliable_jobs import ReliableTask
from reliable_jobs.enqueue.render import Capture
from reliable_jobs.message.row_to_message import Rendered


@shared_task(base=ReliableTask, name="template.echo")
def echo(*args: Any, **kwargs: Any) -> None: ...


def celerys(task: Any) -> Any:
    return DjangoTask.apply_async.__get__(task)


def by_celery(task: ReliableTask, job_id: uuid.UUID, args: Any, kwargs: Any) -> Rendered:
    capture = Capture()
    task.render_into(capture, args, kwargs, str(job_id))
    assert capture.rendered is not None
    return capture.rendered


plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.dates() | st.uuids()

values = st.recursive(
    plain | st.decimals(allow_nan=False) | st.datetimes(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
