"""How soon a worker's parent process notices that a child has ended."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from celery.concurrency.prefork import TaskPool
from celery.concurrency.solo import TaskPool as SoloPool
from kombu.asynchronous import Hub

from reliable_jobs.worker import bootstrap
from reliable_jobs.worker.bootstrap import ChildrenStep
from tests.support.harness import wait_until


class Worker(SimpleNamespace):
    """As much of a worker as the step asks for. It counts the looks."""

    def __init__(self, pool_cls: type) -> None:
        super().__init__(pool_cls=pool_cls, pool=self, looks=0)

    def maintain_pool(self) -> None:
        self.looks += 1


def test_a_prefork_worker_looks_for_ended_children(monkeypatch: Any) -> None:
    """Celery is told of an end too early: a busy worker found no ended child, and looked again after 5 s. One that was
    killed every 2 s did half its work; two such workers stood still for 3 s."""
    monkeypatch.setattr(bootstrap, "CHILDREN_INTERVAL", 0.01)
    worker, hub = Worker(TaskPool), Hub()
    step = ChildrenStep(worker)
    assert step.include_if(worker)
    step.register_with_event_loop(worker, hub)

    def looked() -> bool:
        hub.fire_timers()
        return bool(worker.looks >= 2)

    wait_until(looked, "it has looked, and looked again")


def test_a_reconnect_leaves_one_look_for_ended_children() -> None:
    worker, hub = Worker(TaskPool), Hub()
    step = ChildrenStep(worker)
    step.register_with_event_loop(worker, hub)
    step.register_with_event_loop(worker, hub)
    assert sum(not entry.entry.canceled for entry in hub.timer.queue) == 1


def test_other_pools_have_no_ended_children_to_look_for() -> None:
    assert not ChildrenStep(Worker(SoloPool)).include_if(Worker(SoloPool))
