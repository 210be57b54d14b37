"""The thread that sweeps, in beat and beside a worker."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from reliable_jobs.sweep import statistics, sweeper
from reliable_jobs.sweep.loop import SweepLoop
from tests.celery_app import app


class Ticking:
    """A loop whose sweeps are counted instead of done."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, fail: bool = False) -> None:
        self.ticks = 0
        self.ticked = threading.Semaphore(0)

        def sweep(app: Any, *, actor: str, report: sweeper.Report) -> None:
            self.ticks += 1
            self.ticked.release()
            if fail:
                raise RuntimeError("no database")

        monkeypatch.setattr(sweeper, "sweep", sweep)


@pytest.fixture(autouse=True)
def _counts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody would clear away what a thread counts into a database that its test does not ask for."""
    monkeypatch.setattr(statistics, "roll_when_due", lambda: None)


@pytest.fixture
def loops() -> Iterator[list[SweepLoop]]:
    started: list[SweepLoop] = []
    yield started
    for loop in started:
        loop.stop()


def test_the_loop_sweeps_at_its_interval_and_ends_when_told(
    monkeypatch: pytest.MonkeyPatch, loops: list[SweepLoop]
) -> None:
    ticking = Ticking(monkeypatch)
    loop = SweepLoop(app, actor="test", interval=0.01, keep_connections=True)
    loops.append(loop)
    loop.start()
    assert all(ticking.ticked.acquire(timeout=10) for _ in range(3))
    loop.stop()
    assert not loop._thread.is_alive()
    ended = ticking.ticks
    assert not ticking.ticked.acquire(timeout=0.05) or ticking.ticks == ended


def test_a_loop_without_an_interval_waits_to_be_woken(monkeypatch: pytest.MonkeyPatch, loops: list[SweepLoop]) -> None:
    ticking = Ticking(monkeypatch)
    loop = SweepLoop(app, actor="test", interval=None, keep_connections=True)
    loops.append(loop)
    loop.start()
    assert not ticking.ticked.acquire(timeout=0.05)
    loop.wake()
    assert ticking.ticked.acquire(timeout=10)


def test_a_sweep_that_fails_does_not_end_the_loop(
    monkeypatch: pytest.MonkeyPatch, loops: list[SweepLoop], caplog: pytest.LogCaptureFixture
) -> None:
    ticking = Ticking(monkeypatch, fail=True)
    loop = SweepLoop(app, actor="test", interval=0.01, keep_connections=True)
    loops.append(loop)
    loop.start()
    assert all(ticking.ticked.acquire(timeout=10) for _ in range(3))
    assert "no database" in caplog.text


def test_a_failing_database_takes_nothing_from_anothers_backlog(monkeypatch: pytest.MonkeyPatch) -> None:
    def sweep(app: Any, *, actor: str, report: sweeper.Report) -> None:
        report.more = True
        raise RuntimeError("another database's")

    monkeypatch.setattr(sweeper, "sweep", sweep)
    assert SweepLoop(app, actor="test", interval=None, keep_connections=True).once()


def test_what_is_to_be_done_before_a_sweep_is_done_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    monkeypatch.setattr(sweeper, "sweep", lambda app, **_: order.append("sweep"))
    SweepLoop(app, actor="test", interval=None, keep_connections=True, before=lambda: order.append("before")).once()
    assert order == ["before", "sweep"]
