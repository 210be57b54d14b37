"""Celery: what a worker's pool is, and the fixup for Django that closes connections around its tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from reliable_jobs.compat.celery import CELERY


@CELERY.undocumented("prefork.TaskPool", at="celery.concurrency.prefork:TaskPool", tests=["test_pools"])
@CELERY.undocumented("solo.TaskPool", at="celery.concurrency.solo:TaskPool", tests=["test_pools", "test_kept"])
@CELERY.undocumented("thread.TaskPool", at="celery.concurrency.thread:TaskPool", rare=True, tests=["test_pools"])
@CELERY.undocumented("gevent.TaskPool", at="celery.concurrency.gevent:TaskPool", rare=True, tests=["test_pools"])
@CELERY.undocumented("eventlet.TaskPool", at="celery.concurrency.eventlet:TaskPool", rare=True, tests=["test_pools"])
def is_pool(pool: type, *kinds: str) -> bool:
    """Whether a class of pools is, or derives from, one of Celery's: limits and connections depend on that.

    Args:
        kinds: the names of their modules: ``prefork``, ``solo``, ``thread``, ``gevent``, ``eventlet``.
    """
    modules = [f"celery.concurrency.{kind}" for kind in kinds]
    return any(cls.__module__ in modules for cls in pool.__mro__)


@CELERY.undocumented(
    "concurrency.get_implementation",
    at="celery.concurrency:get_implementation",
    tests=["test_checks"],
)
def pool_named(name: str) -> type:
    """The class of the pool that ``worker_pool`` names."""
    with CELERY.importing():
        from celery.concurrency import get_implementation
    found: type = get_implementation(name)
    return found


@CELERY.undocumented(
    "WorkController.pool_cls",
    inside="celery.worker.worker:WorkController.setup_instance",
    tests=["test_kept"],
)
def pool_of(worker: Any) -> type:
    """The class of the pool that a worker is about to start."""
    found: type = worker.pool_cls
    return found


@CELERY.undocumented(
    "WorkController.time_limit",
    "WorkController.soft_time_limit",
    inside="celery.worker.worker:WorkController.setup_defaults",
    tests=["test_delivery_batches"],
)
def limits_of_worker(worker: Any) -> tuple[float | None, float | None]:
    """Hard and soft limit of tasks that have none, in seconds: of the command line, or else of the settings."""
    return worker.time_limit, worker.soft_time_limit


@CELERY.undocumented(
    "BasePool.num_processes",
    at="celery.concurrency.base:BasePool.num_processes",
    tests=["test_watchdog"],
)
def places(pool: Any) -> int:
    """How many messages a running pool works on at a time."""
    return pool.num_processes or 0


@CELERY.undocumented(
    "prefork.TaskPool.maintain_pool",
    inside="celery.concurrency.prefork:TaskPool.on_start",
    tests=["test_ended_children"],
)
def replace_ended_children(pool: Any) -> None:
    """Answer what children of a prefork pool ran that have ended, and start others in their places."""
    pool.maintain_pool()


@CELERY.undocumented("BasePool.is_green", at="celery.concurrency.base:BasePool.is_green", tests=["test_watchdog"])
def may_block(pool: Any) -> bool:
    """Whether the consumer's loop may wait for a run: in a greenlet pool and in solo."""
    return bool(pool.is_green) or is_pool(type(pool), "solo")


@CELERY.undocumented(
    "BasePool.uses_semaphore",
    at="celery.concurrency.base:BasePool.uses_semaphore",
    tests=["test_bad_messages"],
)
def reserves_places(pool: Any) -> bool:
    """Whether a message that the worker has taken holds a place of the pool, which only its end gives back."""
    return bool(pool.uses_semaphore)


@CELERY.undocumented("Celery._fixups", inside="celery.app.base:Celery.__init__", tests=["test_kept"])
@CELERY.undocumented(
    "fixups.django.DjangoFixup",
    at="celery.fixups.django:DjangoFixup.worker_fixup",
    tests=["test_kept"],
)
def django_fixups(app: Any) -> Iterator[Any]:
    """What Celery's Django fixup does around the tasks of a worker: it closes every database connection. An app hides
    it behind its signals."""
    with CELERY.importing():
        from celery.fixups.django import DjangoFixup
    for fixup in app._fixups or ():
        if isinstance(fixup, DjangoFixup):
            yield fixup.worker_fixup


@CELERY.undocumented(
    "DjangoWorkerFixup.on_task_prerun",
    at="celery.fixups.django:DjangoWorkerFixup.on_task_prerun",
    tests=["test_kept"],
)
@CELERY.undocumented(
    "DjangoWorkerFixup.on_task_postrun",
    at="celery.fixups.django:DjangoWorkerFixup.on_task_postrun",
    tests=["test_kept"],
)
def task_receivers(fixup: Any) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The receivers of ``task_prerun`` and ``task_postrun`` that close the connections, to be put aside for reliable
    tasks."""
    return fixup.on_task_prerun, fixup.on_task_postrun


@CELERY.undocumented(
    "DjangoWorkerFixup.close_cache",
    at="celery.fixups.django:DjangoWorkerFixup.close_cache",
    tests=["test_kept"],
)
def close_cache(fixup: Any) -> None:
    """Close the caches after a task, as the fixup does."""
    fixup.close_cache()
