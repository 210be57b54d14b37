"""Real workers, beat and relays: what they say of themselves, and what is seen when they end."""

from __future__ import annotations

import datetime
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from reliable_jobs import presence
from reliable_jobs.clock import Now
from reliable_jobs.models import ProcessSeen
from reliable_jobs.presence import Seen, State
from tests.support.harness import Stack, lines, wait_until
from tests.support.private_servers import CuttableProxy
from tests.testapp import tasks

pytestmark = [pytest.mark.servers]

#: So often the processes of these tests say that they are there, in seconds.
INTERVAL = 0.5


@pytest.fixture
def site(stack: Stack) -> Iterator[Stack]:
    before = dict(stack.settings)
    stack.settings.update({"PRESENCE_INTERVAL": INTERVAL, "RELEASE": "v42"})
    yield stack
    stack.settings.clear()
    stack.settings.update(before)


def the(kind: str) -> Seen | None:
    found = [one for one in presence.processes("default") if one.kind == kind]
    assert len(found) < 2
    return found[0] if found else None


def when(kind: str, what: str, condition: Any) -> Seen:
    def met() -> Seen | None:
        found = the(kind)
        return found if found is not None and condition(found) else None

    return wait_until(met, f"the {kind} {what}")


def later(seconds: float) -> None:
    """As if so much time had passed since each process was seen."""
    ProcessSeen.objects.update(seen_at=Now() - datetime.timedelta(seconds=seconds))


def kind_of_pool(pool: str) -> None:
    if pool in ("gevent", "eventlet") and importlib.util.find_spec(pool) is None:
        pytest.skip(f"{pool} is not installed")


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo", "gevent"])
def test_a_worker_says_what_it_consumes_and_runs_and_that_it_ends(
    site: Stack, pool: str, outside: Path, gate: Path
) -> None:
    kind_of_pool(pool)
    worker = site.worker(pool=pool)
    # Of one that has no turn for some seconds the next look says that it is silent.
    seen = when("worker", "consumes", lambda one: one.queues and one.broker_ok and one.state == State.THERE)
    assert (site.queue in seen.queues, seen.release) == (True, "v42")
    assert seen.pool.startswith({"threads": "thread"}.get(pool, pool))
    assert seen.name.partition("@")[2]
    result = tasks.gated.delay("busy", str(outside), str(gate))
    wait_until(lambda: lines(outside), "it runs")
    if pool != "solo":  # whose loop stands still meanwhile, so Celery has not noted it yet
        running = when("worker", "runs the job", lambda one: one.active)
        assert running.active[0][0] == result.id
    gate.touch()
    site.ends(result)
    when("worker", "is idle", lambda one: not one.active)
    worker.term()
    assert worker.wait() == 0
    ended = the("worker")
    assert ended is not None
    assert (ended.state, site.queue in ended.queues) == (State.ENDED, True)
    consumers = presence.consumers_of(site.queue, "default")
    assert (list(consumers.now), consumers.last and consumers.last.id) == ([], ended.id)


def test_a_killed_worker_is_silent_and_then_gone(site: Stack) -> None:
    worker = site.worker()
    when("worker", "consumes", lambda one: one.queues)
    worker.kill9()
    worker.wait()
    assert presence.consumers_of(site.queue, "default").now
    later(4 * INTERVAL)
    assert the("worker").state == State.SILENT
    later(13 * INTERVAL)
    assert the("worker").state == State.GONE
    consumers = presence.consumers_of(site.queue, "default")
    assert not consumers.now
    assert consumers.last.state == State.GONE


def test_a_worker_shows_no_end_before_its_last_run_has_ended(site: Stack, outside: Path, gate: Path) -> None:
    worker = site.worker()
    result = tasks.gated.delay("busy", str(outside), str(gate))
    wait_until(lambda: lines(outside), "it runs")
    worker.term()
    worker.wait_for_line("Warm shutdown")
    since = when("worker", "goes on", lambda one: one.active).seen_at
    when("worker", "is seen again", lambda one: one.seen_at > since and one.state == State.THERE)
    gate.touch()
    assert worker.wait() == 0
    assert the("worker").state == State.ENDED
    assert site.job(result).status == "succeeded"


@pytest.mark.parametrize("kind", ["beat", "relay"])
def test_beat_and_relay_say_that_they_are_there(site: Stack, kind: str) -> None:
    if kind == "beat":
        pytest.importorskip("django_celery_beat", reason="needs django-celery-beat")
        process = site.beat()
    else:
        process = site.script("from django.core.management import call_command; call_command('reliable_jobs_relay')")
    seen = when(kind, "is there", lambda one: one.state == State.THERE)
    assert (seen.queues, seen.active, seen.broker_ok) == ((), (), None)
    # A beat that asks its database at that moment may miss it: docs/upstream.md.
    wait_until(lambda: process.term() or not process.alive, f"{kind} ends", every=2)
    assert the(kind).state == State.ENDED, kind


def test_a_worker_without_its_broker_consumes_nothing(site: Stack) -> None:
    with CuttableProxy(urlsplit(site.broker_url).port or 5672) as proxy:
        site.worker(broker_url=proxy.url(site.broker_url))
        when("worker", "consumes", lambda one: one.queues and one.broker_ok)
        proxy.refuse(True)
        proxy.cut()
        seen = when("worker", "has lost its broker", lambda one: not one.broker_ok and one.state == State.THERE)
        assert seen.queues == ()
        assert not presence.consumers_of(site.queue, "default").now
        proxy.refuse(False)
        when("worker", "consumes again", lambda one: one.queues and one.broker_ok)
