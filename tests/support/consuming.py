"""What a broker, a network and an operating system do to a worker that consumes, and the judgement afterwards.

Each fault is applied and healed by one function. `survive` runs a backlog through one of them and checks what a site
expects afterwards: the worker takes new jobs, its prefetch window is full again, nothing is lost or doubled, and few
messages were needed. A worker that ends is started again, as a supervisor would.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from django.db.models import Count, Sum

from reliable_jobs.clock import Now
from reliable_jobs.models import Job
from tests.support.harness import Stack, Worker, lines, wait_until
from tests.support.private_servers import CuttableProxy, PrivateRabbitMQ, PrivateRedis
from tests.testapp import tasks
from tests.testapp.models import Effect

#: Within this time after the end of the fault a worker takes new jobs, in seconds.
BACK_WITHIN = 60.0
#: Published messages per job that a fault may cost, beside those that replace what it destroyed.
MESSAGES_PER_JOB = 1.5
CONCURRENCY = 4
BACKLOG = 40
#: Of a pool that does one job after another: as many seconds of work.
BACKLOG_SOLO = BACKLOG // CONCURRENCY


@dataclasses.dataclass
class Site:
    """A stack whose workers reach a broker of their own through a proxy."""

    stack: Stack
    broker: PrivateRabbitMQ | PrivateRedis
    proxy: CuttableProxy

    def worker(self, pool: str, *options: str, app: str = "tests.celery_app", **environment: Any) -> Worker:
        """A worker as people start it: with events, gossip and mingle."""
        name = f"w{uuid.uuid4().hex[:8]}"
        argv = [sys.executable, "-m", "celery", "-A", app, "worker", "-l", "INFO", "-n", f"{name}@test"]
        argv += ["-P", pool, "-c", str(1 if pool == "solo" else CONCURRENCY), "-Q", self.stack.queue, *options]
        environment = {"broker_url": self.proxy.url(self.broker.url), **environment}
        worker = Worker(name, argv, self.stack.environment(**environment), self.stack.directory)
        self.stack.processes.append(worker)
        return worker.wait_until_ready()


#: Returns the jobs whose messages it destroyed, if it destroys any.
Fault = Callable[[Site, Worker, float], list[uuid.UUID] | None]


def restart(site: Site, worker: Worker, seconds: float) -> None:
    site.broker.stop()
    time.sleep(seconds)
    site.broker.start()


def reset(site: Site, worker: Worker, seconds: float) -> None:
    site.proxy.reset()


def silence(site: Site, worker: Worker, seconds: float) -> None:
    """A broker or balancer that accepts connections and answers nothing for a while."""
    site.proxy.blackhole(True)
    time.sleep(seconds)
    site.proxy.blackhole(False)


def unanswered(site: Site, worker: Worker, seconds: float) -> None:
    """The connections end, and new ones are accepted and not answered for a while."""
    site.proxy.blackhole(True)
    site.proxy.reset()
    time.sleep(seconds)
    site.proxy.blackhole(False)


def half_open(site: Site, worker: Worker, seconds: float) -> None:
    """A firewall forgets the connections: both ends believe in them, new ones work."""
    site.proxy.blackhole(True)
    site.proxy.blackhole(False)


def close_all_connections(site: Site, worker: Worker, seconds: float) -> None:
    assert isinstance(site.broker, PrivateRabbitMQ)
    site.broker.ctl("close_all_connections", "maintenance")


def queue_deleted(site: Site, worker: Worker, seconds: float) -> list[uuid.UUID]:
    assert isinstance(site.broker, PrivateRabbitMQ)
    site.broker.delete_queue(site.stack.queue)
    return list(Job.objects.unfinished().values_list("pk", flat=True))


def memory_alarm(site: Site, worker: Worker, seconds: float) -> None:
    assert isinstance(site.broker, PrivateRabbitMQ)
    site.broker.set_memory_alarm(True)
    time.sleep(seconds)
    site.broker.set_memory_alarm(False)


def stopped(site: Site, worker: Worker, seconds: float) -> None:
    """The whole machine of the worker is suspended, and the network forgets its connections meanwhile."""
    worker.stop()
    site.proxy.reset()
    time.sleep(seconds)
    worker.cont()


def consumer_timeout(site: Site, worker: Worker, seconds: float) -> None:
    """A body that is not acknowledged in time; the broker is told of a short time by `short_consumer_timeout`."""
    log, gate = site.stack.directory / f"timeout-{worker.name}", site.stack.directory / f"timeout-gate-{worker.name}"
    tasks.gated.delay(f"timeout-{worker.name}", str(log), str(gate))
    wait_until(lambda: lines(log), "the long body runs")
    time.sleep(seconds)
    gate.touch()


RABBITMQ: dict[str, tuple[Fault, float]] = {
    "restart": (restart, 0),
    "reset": (reset, 0),
    "silence": (silence, 60),
    "half-open": (half_open, 0),
    "close_all_connections": (close_all_connections, 0),
    "queue deleted": (queue_deleted, 0),
    "memory alarm": (memory_alarm, 20),
    "stopped": (stopped, 45),
    "consumer timeout": (consumer_timeout, 12),
}
#: Redis starts again in a moment: longer, so that somebody asks for it meanwhile.
REDIS: dict[str, tuple[Fault, float]] = {"restart": (restart, 5), "reset": (reset, 0), "silence": (silence, 60)}


@contextlib.contextmanager
def short_consumer_timeout(broker: PrivateRabbitMQ) -> Iterator[None]:
    """RabbitMQ closes a channel after 6 s without an acknowledgement, instead of 30 minutes; for new channels."""

    def configure(timeout: int, tick: int) -> None:
        values = f"[{{consumer_timeout, {timeout}}}, {{channel_tick_interval, {tick}}}]"
        broker.ctl("eval", f"[application:set_env(rabbit, Name, Value) || {{Name, Value}} <- {values}].")

    configure(6_000, 1_000)
    try:
        yield
    finally:
        configure(1_800_000, 60_000)


@dataclasses.dataclass
class Outcome:
    back_after: float
    ended_with: list[int]
    #: Without those that replace messages which the fault destroyed.
    messages_per_job: float
    replaced: int


def survive(
    site: Site,
    pool: str,
    fault: Fault,
    seconds: float,
    *,
    backlog: int | None = None,
    back_within: float = BACK_WITHIN,
    **environment: Any,
) -> Outcome:
    """Run a backlog through a fault and judge.

    Raises:
        AssertionError: the worker did not come back in time, or a job was lost or doubled, or cost too many messages.
    """
    stack, run = site.stack, uuid.uuid4().hex[:6]
    backlog = backlog or (BACKLOG_SOLO if pool == "solo" else BACKLOG)
    log = stack.directory / f"log-{run}"
    worker = site.worker(pool, **environment)
    ended_with: list[int] = []

    def supervised() -> bool:
        if not worker.alive:
            ended_with.append(worker.popen.returncode)
            worker.start()
        return True

    def end(names: list[str]) -> bool:
        return supervised() and Effect.objects.filter(name__in=names).count() >= len(names)

    tasks.takes_a_while.bulk_delay((f"{run} backlog {n}", str(log)) for n in range(backlog))
    wait_until(
        lambda: len(lines(log)) > CONCURRENCY or (pool == "solo" and lines(log)), "the backlog is being worked off"
    )
    destroyed = fault(site, worker, seconds) or []
    healed = time.monotonic()
    new = [f"{run} new {n}" for n in range(5)]
    for name in new:
        tasks.effect.delay(name)
    try:
        wait_until(lambda: end(new), "new jobs are done after the fault", back_within, every=0.2)
    except AssertionError as error:
        raise AssertionError(f"{error}; the worker ended with {ended_with}:\n{worker.log[-6000:]}") from None
    back_after = time.monotonic() - healed
    wait_until(lambda: supervised() and not Job.objects.unfinished().exists(), "every job has ended", every=0.3)
    _prefetch_is_full(site, worker, pool, run)
    stack.all_end()
    doubled = list(Effect.objects.values("name").annotate(times=Count("pk")).filter(times__gt=1))
    assert not doubled, doubled
    assert Effect.objects.filter(name__startswith=f"{run} backlog").count() == backlog, "jobs are lost"
    # One more message for a job whose message is gone is no copy.
    replaced = Job.objects.filter(pk__in=destroyed, sends__gt=1).count()
    per_job = (Job.objects.aggregate(sends=Sum("sends"))["sends"] - replaced) / Job.objects.count()
    assert per_job <= MESSAGES_PER_JOB, f"{per_job:.2f} messages per job"
    return Outcome(back_after, ended_with, per_job, replaced)


def _prefetch_is_full(site: Site, worker: Worker, pool: str, run: str) -> None:
    """As many messages as were prefetched before the fault are with the worker again."""
    window = 4 * (1 if pool == "solo" else CONCURRENCY)
    if pool == "gevent" and isinstance(site.broker, PrivateRedis):
        window = CONCURRENCY + 1  # its loop, which takes the messages, waits for a free greenlet
    if pool == "solo":
        # Its loop acknowledges with its next turn, which a timer brings within 2 s; what arrives before that finds part
        # of the window taken by jobs that have ended.
        lately = Job.objects.filter(finished_at__gt=Now() - datetime.timedelta(seconds=3))
        wait_until(lambda: not lately.exists(), "the last jobs are acknowledged", every=0.3)
    gate = site.stack.directory / f"gate-{run}"
    log = site.stack.directory / f"gated-{run}"
    try:
        for n in range(window + 3):
            tasks.gated.delay(f"{run} gated {n}", str(log), str(gate))
        wait_until(
            lambda: site.broker.depth(site.stack.queue) == 3,
            f"{window} messages are prefetched",
            every=0.3,
        )
    except AssertionError as error:
        ready = site.broker.depth(site.stack.queue)
        channels = ""
        if isinstance(site.broker, PrivateRabbitMQ):
            columns = ("name", "prefetch_count", "global_prefetch_count", "messages_unacknowledged")
            channels = site.broker.ctl("list_channels", *columns)
        raise AssertionError(f"{error}; {ready} are ready\n{channels}\n{worker.log[-6000:]}") from None
    finally:
        Path(gate).touch()
    wait_until(lambda: not Job.objects.unfinished().exists(), "the gated jobs end", every=0.3)
