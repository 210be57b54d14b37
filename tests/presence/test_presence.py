"""Each process says that it is there; who consumes a queue, and who did last, is one query."""

from __future__ import annotations

import datetime
import logging
import threading
import uuid
from typing import Any

import pytest
from django.db import DatabaseError, connection
from django.test import override_settings
from django.utils import timezone

from reliable_jobs import presence
from reliable_jobs.clock import Now
from reliable_jobs.models import Process, ProcessSeen
from reliable_jobs.presence import Beacon, Report, State, beacon
from reliable_jobs.status import ProcessKind
from reliable_jobs.sweep import pruner
from tests.support.harness import Stack, wait_until


def made(name: str, ago: float = 0, *, ended: bool = False, kind: str = "worker", queues: Any = ("mail",)) -> uuid.UUID:
    """A process that was seen so many seconds ago."""
    now = timezone.now()
    row = Process.objects.create(
        kind=kind, name=name, host="web", pid=1, started_at=now, ended_at=now if ended else None
    )
    ProcessSeen.objects.create(process=row, queues=list(queues))
    ProcessSeen.objects.filter(pk=row.pk).update(seen_at=Now() - datetime.timedelta(seconds=ago))
    return row.pk


@pytest.mark.django_db
def test_silent_after_three_intervals_and_gone_after_twelve() -> None:
    for name, ago, ended in (("a", 25, False), ("b", 35, False), ("c", 115, False), ("d", 125, False), ("e", 1, True)):
        made(name, ago, ended=ended)
    states = {one.name: one.state for one in presence.processes("default")}
    assert states == {"a": "there", "b": "silent", "c": "silent", "d": "gone", "e": "ended"}
    assert [one.name for one in presence.processes("default")] == ["e", "a", "b", "c", "d"]
    with override_settings(RELIABLE_JOBS={"PRESENCE_INTERVAL": 1}):
        assert {one.state for one in presence.processes("default")} == {State.GONE, State.ENDED}


@pytest.mark.django_db
def test_who_consumes_a_queue_and_who_did_last(django_assert_num_queries: Any) -> None:
    made("relay", kind="relay", queues=())
    made("away", 5, queues=())
    made("older", 300)
    made("web-3", 200)
    made("other", queues=["other"])
    with django_assert_num_queries(1):
        found = presence.consumers_of("mail", "default")
    assert found.last is not None
    assert (list(found.now), found.last.name) == ([], "web-3")
    made("busy", 60)
    made("here", 2)
    found = presence.consumers_of("mail", "default")
    assert [one.name for one in found.now] == ["here", "busy"]
    assert presence.consumers_of("nobody's", "default").last is None


@pytest.mark.django_db
def test_who_was_not_seen_for_a_day_is_pruned() -> None:
    kept = made("kept", 86_000)
    made("old", 87_000)
    Process.objects.update(started_at=Now() - datetime.timedelta(days=3))
    pruner.prune()
    assert list(Process.objects.values_list("pk", flat=True)) == [kept]
    assert list(ProcessSeen.objects.values_list("pk", flat=True)) == [kept]


# --- the thread -------------------------------------------------------------------------------------------------------


def there() -> list[presence.Seen]:
    return presence.processes("default")


@pytest.mark.servers
@override_settings(RELIABLE_JOBS={"PRESENCE_INTERVAL": 0.05, "RELEASE": "v42"})
def test_a_row_is_written_at_once_and_updated_in_its_place(stack: Stack) -> None:
    say = Beacon(ProcessKind.RELAY, report=lambda: Report(["b", "a"], [("id", 1.26)] * 60, True))
    say.start()
    try:

        def seen_twice() -> presence.Seen | None:
            # On a slow machine it may be silent at a look: it has 150 ms.
            return next((one for one in there() if one.seen_at > one.started_at and one.state == "there"), None)

        one = wait_until(seen_twice, "it was seen twice, and is there")
        assert (one.kind, one.release, one.queues, one.broker_ok) == ("relay", "v42", ("a", "b"), True)
        assert one.active == (("id", 1.3),) * beacon.MOST_ACTIVE
        ProcessSeen.objects.all().delete()  # by a person, or a restored backup
        wait_until(there, "it has written itself again")
        first = there()[0].seen_at
        wait_until(lambda: there()[0].seen_at > first + datetime.timedelta(seconds=0.5), "ten updates")
    finally:
        say.stop()
    (one,) = there()
    assert (one.state, one.queues) == (State.ENDED, ("a", "b"))


def updates() -> tuple[int, int]:
    """How many updates of the table there were, and how many of them wrote no index."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'reliable_jobs_processseen'"
        )
        updated, heap_only = cursor.fetchone()
    return updated, heap_only


@pytest.mark.servers
@override_settings(RELIABLE_JOBS={"PRESENCE_INTERVAL": 0.01})
def test_no_update_writes_an_index(stack: Stack) -> None:
    before = updates()
    say = Beacon(ProcessKind.RELAY, report=lambda: Report(["mail"], [(str(uuid.uuid4()), 1.26)] * 8, True))
    say.start()
    try:
        wait_until(lambda: updates()[0] > before[0] + 20, "the statistics say that there were twenty updates")
    finally:
        say.stop()
    after = updates()
    # Where another session's snapshot needs the versions before, one may find no room on its page.
    assert after[1] - before[1] >= 0.9 * (after[0] - before[0])


@pytest.mark.servers
@override_settings(RELIABLE_JOBS={"PRESENCE_INTERVAL": 0.02})
def test_a_failure_is_said_once_and_hurts_nobody(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tries = threading.Semaphore(0)
    broken = [True]
    write = Beacon._say

    def say_or_not(self: Beacon, alias: str) -> None:
        tries.release()
        if broken[0]:
            raise DatabaseError("no such table")
        write(self, alias)

    def no_report() -> Report:
        raise RuntimeError("set changed size during iteration")

    monkeypatch.setattr(Beacon, "_say", say_or_not)
    say = Beacon(ProcessKind.BEAT, report=no_report)
    with caplog.at_level(logging.WARNING):
        say.start()
        try:
            for _ in range(3):
                assert tries.acquire(timeout=30)
            assert caplog.text.count("no such table") == 1
            broken[0] = False
            wait_until(there, "it is shown, though it can't say what it does")
        finally:
            say.stop()
    assert there()[0].state == State.ENDED


@pytest.mark.servers
@override_settings(RELIABLE_JOBS={"PRESENCE_INTERVAL": 60})
def test_a_database_that_does_not_answer_holds_up_no_shutdown(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    began, never = threading.Event(), threading.Event()

    def hangs(self: Beacon, alias: str) -> None:
        began.set()
        never.wait(60)

    monkeypatch.setattr(Beacon, "_say", hangs)
    monkeypatch.setattr(beacon, "LAST_WORDS", 0.1)
    say = Beacon(ProcessKind.BEAT)
    say.start()
    assert began.wait(30)
    say.stop()
    assert say._thread.is_alive()
    never.set()
    say._thread.join(30)
    assert not say._thread.is_alive()


@override_settings(RELIABLE_JOBS={"PRESENCE_INTERVAL": 0})
def test_it_can_be_switched_off() -> None:
    say = Beacon(ProcessKind.BEAT)
    say.start()
    assert not say._thread.is_alive()
    say.stop()
