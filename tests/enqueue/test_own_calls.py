"""What a project puts between a call and ours is asked for every call: mixins, instruments, methods of a subclass."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import celery
import pytest
from celery import Celery, Task, shared_task
from celery.contrib.django.task import DjangoTask

from reliable_jobs import ReliableTask
from reliable_jobs.enqueue.template import is_safe
from reliable_jobs.errors import InvalidOption
from reliable_jobs.models import Job
from tests.celery_app import app
from tests.enqueue.called import celerys, echo
from tests.support import inprocess
from tests.support.inprocess import InProcess

rows = inprocess.rows

TENANT_MIXIN = """
import functools
class TenantMixin:
    tenant = None
    def apply_async(self, *args, **options):
        options["headers"] = {**(options.get("headers") or {}), "tenant": TenantMixin.tenant}
        return super().apply_async(*args, **options)
def copied(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)
    return wrapper
"""


@pytest.fixture
def neighbour() -> dict[str, Any]:
    """A package of somebody's, installed beside Celery in a folder whose name begins with "celery"."""
    space: dict[str, Any] = {"__name__": "celery_tenants.mixin"}
    exec(compile(TENANT_MIXIN, str(Path(celery.__file__).parent) + "_tenants/mixin.py", "exec"), space)
    return space


@pytest.mark.parametrize("behind", [False, True])
def test_a6_a_mixin_is_asked_for_every_call_whatever_its_folder_is_called(
    rows: InProcess, neighbour: dict[str, Any], behind: bool
) -> None:
    mixin = neighbour["TenantMixin"]
    if behind:
        base = type("Behind", (ReliableTask, type("Tenants", (mixin, DjangoTask), {})), {})
    else:
        base = type("Before", (mixin, ReliableTask), {})
    task = app.task(base=base, name=f"template.a6_{behind}", shared=False)(lambda_free)
    seen = []
    for tenant in ("t1", "t2", "t3"):
        mixin.tenant = tenant
        for job_id in (task.delay(1).id, *task.bulk_delay([(2,), (3,)])):
            seen.append(json.loads(Job.objects.get(pk=job_id).envelope)["headers"].get("tenant"))
    assert seen == ["t1"] * 3 + ["t2"] * 3 + ["t3"] * 3


def lambda_free(x: int) -> None: ...


@pytest.mark.parametrize(
    ("owner", "name"),
    [(Celery, "send_task"), (Celery, "producer_or_acquire"), (Task, "apply_async"), (Task, "_get_exec_options")],
)
def test_a6_an_instrument_is_seen_whatever_its_folder_is_called(
    monkeypatch: pytest.MonkeyPatch, neighbour: dict[str, Any], owner: Any, name: str
) -> None:
    assert is_safe(echo, celerys(echo))
    monkeypatch.setattr(owner, name, neighbour["copied"](getattr(owner, name)))
    assert not is_safe(echo, celerys(echo))


class OwnQueue(ReliableTask):
    def apply_async(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        options.setdefault("queue", f"customer-{(args or [0])[0]}")
        return super().apply_async(args, kwargs, **options)


class OwnDelay(ReliableTask):
    def delay(self, *args: Any, **kwargs: Any) -> Any:
        return super().delay(*args, tenant="t1", **kwargs)


@shared_task(base=OwnQueue, name="template.own_queue")
def own_queue(x: int) -> None: ...


@shared_task(base=OwnDelay, name="template.own_delay")
def own_delay(x: int, tenant: str) -> None: ...


def test_e6_bulk_delay_goes_through_a_subclass_apply_async(rows: InProcess) -> None:
    ids = own_queue.bulk_delay([(1,), (2,)], countdown=60)
    assert [Job.objects.get(pk=one).queue for one in ids] == ["customer-1", "customer-2"]
    (other,) = own_queue.bulk_delay([(1,)], queue="q")
    assert Job.objects.get(pk=other).queue == "q"


def test_e6_bulk_delay_goes_through_a_subclass_delay_or_says_why_not(rows: InProcess) -> None:
    from reliable_jobs.message.decode import arguments

    ids = own_delay.bulk_delay([(1,), {"x": 2}])
    assert [arguments(Job.objects.get(pk=one)) for one in ids] == [
        ([1], {"tenant": "t1"}),
        ([], {"x": 2, "tenant": "t1"}),
    ]
    with pytest.raises(InvalidOption, match=r"can't pass countdown through the task's own delay\(\)"):
        own_delay.bulk_delay([(1,)], countdown=60)


def test_e6_bulk_delay_goes_through_what_is_put_on_a_task(rows: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[Any] = []
    task = echo._get_current_object()
    apply_async = task.apply_async
    monkeypatch.setattr(
        task, "apply_async", lambda *args, **options: called.append(args) or apply_async(*args, **options)
    )
    assert len(echo.bulk_delay([(1,), (2,)])) == len(called) == 2
