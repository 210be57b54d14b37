"""A process with Django and Celery loaded and nothing open: ``python -m qa.crashes.warm`` forks a child for each order
that it reads, a line of JSON, and says how the child ended.

A fresh worker costs seconds, a forked one a tenth of one. The child takes its number from ``CRASH_AT``, counts its own
steps, and kills itself at that one.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import amqp
import django
from celery import signals

from tests.celery_app import app

PATIENCE = 120.0
RECEIVED = "message received"
#: What a pool's child does last.
LAST = "task_postrun"
#: What a worker imports while it starts, beside what it has done for its tasks.
IMPORTED = (
    *(
        "celery.apps.worker",
        "celery.concurrency.prefork",
        "celery.concurrency.solo",
        "celery.concurrency.thread",
        "celery.worker.autoscale",
    ),
    *(
        "celery.worker.consumer",
        "celery.worker.loops",
        "celery.worker.strategy",
        "celery.app.log",
        "celery.app.control",
    ),
    *("django_celery_results.backends.database", "kombu.transport.pyamqp", "qa.crashes.producers"),
)


def main() -> None:
    os.environ["CELERY_SKIP_CHECKS"] = "true"  # Celery runs Django's system checks otherwise, in every worker
    django.setup()
    from reliable_jobs.testing.steps import exit_code, in_fork

    for module in IMPORTED:
        importlib.import_module(module)
    app.loader.import_default_modules()
    app.finalize()

    for line in sys.stdin:
        order = json.loads(line)
        if "end" in order:
            os.kill(order["end"], signal.SIGKILL)
            answer: Any = exit_code(order["end"], PATIENCE)
        else:
            answer = in_fork(functools.partial(child, order))
            if order.get("wait", True):
                answer = exit_code(answer, PATIENCE)
        print(json.dumps(answer), flush=True)


def child(order: dict[str, Any]) -> None:
    from reliable_jobs.testing.steps import Steps

    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a worker prints is no answer
    os.environ["CRASH_AT"] = str(order.get("kill_at", 0))
    steps = Steps(order["log"], int(os.environ["CRASH_AT"]))
    steps.watch_databases()
    watch_broker(steps)
    signals.task_received.connect(lambda **kwargs: steps.reached(RECEIVED), weak=False)
    ROLES[order["role"]](order, steps)


def watch_broker(steps: Any) -> None:
    """Every call to the broker whose loss could matter, at the driver's public methods; and the wait for confirms."""
    from reliable_jobs.dispatch.amqp_pipeline import Pipeline

    def wrap(owner: Any, name: str, said: str) -> None:
        call = getattr(owner, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            with steps.around(said):
                return call(*args, **kwargs)

        setattr(owner, name, counted)

    for name in ("queue_declare", "basic_ack", "basic_reject"):
        wrap(amqp.Channel, name, f"broker: {name}")
    wrap(Pipeline, "_write", "broker: publish")
    wrap(Pipeline, "_await_confirms", "broker: wait for confirms")


def celery_worker(order: dict[str, Any], pool: str, **options: Any) -> None:
    """What ``celery worker`` starts."""
    # A broadcast of a neighbour's test (a revoke has a worker look up the task's state) would be a step here.
    app.conf.worker_enable_remote_control = False
    worker = app.Worker(
        hostname=f"{order['name']}@test",
        pool_cls=pool,
        loglevel="INFO",
        queues=order["queues"],
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
        quiet=True,
        **{"concurrency": 1, **options},
    )
    worker.start()


def worker(order: dict[str, Any], steps: Any) -> None:
    """Solo: one process consumes, runs and acknowledges. It ends with its first ack or reject, or with as many as the
    order says."""
    steps.counting = False
    left = [order.get("answers", 1)]

    def begin(**kwargs: Any) -> None:
        steps.counting = True

    signals.worker_ready.connect(begin, weak=False)
    for name in ("basic_ack", "basic_reject"):
        setattr(amqp.Channel, name, _and_then_exit(getattr(amqp.Channel, name), left))
    # One message at a time, so that each run takes the same way.
    celery_worker(order, "solo", prefetch_multiplier=1)


def recovery(order: dict[str, Any], steps: Any) -> None:
    """Threads, because a solo worker may keep an ack for seconds until something else wakes its event loop."""
    celery_worker(order, "threads")


def _and_then_exit(call: Callable[..., Any], left: list[int]) -> Callable[..., Any]:
    """
    Args:
        left: how many such calls are left.
    """

    def counted(*args: Any, **kwargs: Any) -> None:
        call(*args, **kwargs)
        left[0] -= 1
        if not left[0]:
            os._exit(0)

    return counted


def prefork(order: dict[str, Any], steps: Any) -> None:
    """The first run of a name kills its child at the step that the name ends with; the parent lives."""
    from reliable_jobs.testing.steps import Steps

    def born(**kwargs: Any) -> None:
        steps.counting = False  # the parent's

    def begin(args: Any, **kwargs: Any) -> None:
        path = Path(order["log"]).with_name(f"{args[0]}.steps")
        if not path.exists():
            os.environ["CRASH_AT"] = args[0].rpartition("_")[2]
            mine = Steps(path, int(os.environ["CRASH_AT"]))
            mine.watch_databases()
            watch_broker(mine)
            signals.task_postrun.connect(lambda **kwargs: mine.reached(LAST), weak=False)

    signals.worker_process_init.connect(born, weak=False)
    signals.task_prerun.connect(begin, weak=False)
    celery_worker(order, "prefork", concurrency=order["children"])


def producer(order: dict[str, Any], steps: Any) -> None:
    from qa.crashes import producers

    getattr(producers, order["kind"])(order["name"], order["queues"][0])


def sweeper(order: dict[str, Any], steps: Any) -> None:
    from reliable_jobs.sweep import sweeper

    sweeper.sweep(app)


ROLES = {"worker": worker, "recovery": recovery, "prefork": prefork, "producer": producer, "sweeper": sweeper}

if __name__ == "__main__":
    main()
