"""Counts on their way to prometheus-client: none is lost or doubled by threads, forks and ends of processes."""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys
import textwrap
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Histogram, values
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.parser import text_string_to_metric_families

from reliable_jobs import signals
from reliable_jobs.compat.prometheus import observe_many, share_from_now_on
from reliable_jobs.telemetry import counters, port, tally
from tests.support import inprocess
from tests.support.generated import examples
from tests.support.harness import Stack, wait_until
from tests.support.inprocess import InProcess
from tests.support.private_servers import free_port
from tests.testapp import tasks

jobs = inprocess.jobs

NEVER = 3600.0


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process that has counted nothing yet; what is counted is not carried over by itself."""
    for name, value in {"_counts": {}, "_seen": {}, "_pending": threading.Event(), "_thread": None}.items():
        monkeypatch.setattr(tally, name, value)
    monkeypatch.setattr(tally, "PAUSE", NEVER)


@pytest.fixture
def counted() -> Counter:
    return Counter("counted", "", ["task", "queue"], registry=None)


def value(counter: Counter) -> float:
    return counter.labels("t", "q")._value.get()


# --- what is counted --------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("fresh")
def test_each_step_of_a_job_is_counted_once(jobs: InProcess) -> None:
    counters.connect()
    try:
        assert all(signals.heard(signal) for signal in counters._COUNTERS)
        job = jobs.run(tasks.effect, "counted")
        name = (job.task, job.queue)
        steps = [(counters.ENQUEUED, *name), (counters.PUBLISHED, *name), (counters.STARTED, *name)]
        assert tally._counts == dict.fromkeys([*steps, (counters.SETTLED, *name, "succeeded")], 1)
        seen = {key: sum(values.buckets) for key, values in tally._seen.items()}
        assert seen == {(counters.WAIT, *name): 1, (counters.RUN, *name): 1}
    finally:
        counters.disconnect()


@pytest.mark.usefixtures("fresh")
def test_nothing_is_counted_where_no_port_is_set(jobs: InProcess) -> None:
    counters.connect()
    counters.disconnect()
    assert not signals._counters
    assert not signals.heard(signals.job_started)
    jobs.run(tasks.effect, "not counted")
    assert not tally._counts
    assert tally._thread is None


@pytest.fixture(params=[False, True], ids=["one process", "files"])
def kept(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Histogram, ...]]:
    """Two histograms, in memory or in files."""
    files: list[MmapedDict] = []
    if request.param:

        def opened(path: str) -> MmapedDict:
            files.append(MmapedDict(path))
            return files[-1]

        monkeypatch.setattr(values, "MmapedDict", opened)
        monkeypatch.setenv(port.DIRECTORY, str(tmp_path))
        monkeypatch.setattr(values, "ValueClass", None)
        share_from_now_on()
    yield tuple(Histogram(f"h{n}", "", ["task", "queue"], buckets=tally.BUCKETS, registry=None) for n in range(2))
    for file in files:
        file.close()


SECONDS = st.one_of(
    st.sampled_from([*tally.BUCKETS, *(math.nextafter(bound, math.inf) for bound in tally.BUCKETS), 0.0, 1e9]),
    st.floats(0, 2 * tally.BUCKETS[-1]),
)


@pytest.mark.usefixtures("fresh")
def test_many_values_are_carried_over_as_observe_takes_them(kept: tuple[Histogram, ...], counted: Counter) -> None:
    tasks_of_examples = map(str, itertools.count())

    def shown(histogram: Histogram, task: str) -> dict[Any, float]:
        [metric] = histogram.collect()
        return {
            (sample.name[2:], sample.labels.get("le")): sample.value
            for sample in metric.samples
            if sample.labels["task"] == task and not sample.name.endswith("_created")
        }

    @examples(100)
    @given(st.lists(st.lists(SECONDS, max_size=20), max_size=3))
    def as_observed(runs: list[list[float]]) -> None:
        task, (ours, theirs) = next(tasks_of_examples), kept
        for each in itertools.chain([[1.0]], runs):
            for seconds in each:
                tally.add(counted, task, "q", observed=(ours, seconds))
                theirs.labels(task, "q").observe(seconds)
            tally.carry_over()
        mine, expected = shown(ours, task), shown(theirs, task)
        sums = [found.pop(("_sum", None)) for found in (mine, expected)]
        assert mine == expected
        assert sums[0] == pytest.approx(sums[1])
        assert expected["_count", None] == counted.labels(task, "q")._value.get()

    as_observed()


def test_a_histogram_with_other_buckets_is_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        observe_many(Histogram("other", "", buckets=(1.0, 2.0), registry=None), [1, 0], 0.5)


# --- the thread -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("fresh")
def test_the_thread_carries_over_and_waits_for_more(counted: Counter, monkeypatch: pytest.MonkeyPatch) -> None:
    # The thread of an earlier test may still end its pause, and carry over what is pending now.
    carried: list[threading.Thread] = []
    monkeypatch.setattr(tally, "PAUSE", 0)
    monkeypatch.setattr(tally, "_carry", lambda *pending: carried.append(threading.current_thread()))
    for number in range(1, 4):
        tally.add(counted, "t", "q")
        wait_until(lambda number=number: carried.count(tally._thread) >= number, "it is carried over")
    assert carried.count(tally._thread) == 3, "it looks only where something was counted"
    assert [thread.name for thread in threading.enumerate()].count("reliable_jobs-counts") >= 1


@pytest.mark.usefixtures("fresh")
def test_no_count_is_lost_between_threads(counted: Counter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally, "PAUSE", 0.001)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [
            threading.Thread(target=lambda: [tally.add(counted, "t", "q") for _ in range(2000)]) for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    wait_until(lambda: value(counted) == 8000, "all are carried over, by the thread")


@pytest.mark.usefixtures("fresh")
def test_without_room_for_a_thread_it_is_carried_over_at_once(
    counted: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        for number in (1, 2):
            tally.add(counted, "t", "q")
            assert value(counted) == number
    tally.add(counted, "t", "q")
    assert tally._thread is not None, "there is room again"
    assert value(counted) == 2


@pytest.mark.usefixtures("fresh")
def test_what_cant_be_carried_over_is_logged_and_the_next_is(
    counted: Counter, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*pending: Any) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(tally, "_carry", full)
        tally.add(counted, "t", "q")
        tally.carry_over()
    assert "No space left on device" in caplog.text
    tally.add(counted, "t", "q")
    tally.carry_over()
    assert value(counted) == 1


# --- processes --------------------------------------------------------------------------------------------------------

SITE = """
import os, signal, sys, time, threading
import django
from django.conf import settings

settings.configure(
    RELIABLE_JOBS={"METRICS_LISTEN": sys.argv[1]}, INSTALLED_APPS=["django.contrib.contenttypes", "reliable_jobs"]
)
django.setup()
from reliable_jobs.telemetry import port

port._count()
from prometheus_client import CollectorRegistry
from prometheus_client.multiprocess import MultiProcessCollector
from celery.signals import worker_process_shutdown
from reliable_jobs import signals
from reliable_jobs.telemetry import counters, tally

tally.PAUSE = 3600

def count(many):
    said = {"task": "t", "queue": "q", "status": "succeeded", "seconds": 0.01}
    signals.send(signals.job_settled, "default", [said] * many)

def shown():
    registry = CollectorRegistry()
    MultiProcessCollector(registry)
    return registry.get_sample_value("reliable_jobs_settled_total", {"task": "t", "queue": "q", "status": "succeeded"})

def ended(child):
    assert os.waitpid(child, 0)[1] == 0
"""


def ran(code: str, directory: Path, listen: str = "127.0.0.1:9808", before: str = "") -> str:
    """What the code prints in a process that counts; its files are in the directory."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", before + SITE + textwrap.dedent(code), listen],
        env={**os.environ, port.DIRECTORY: str(directory)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip()


def in_files(directory: Path) -> float | None:
    registry = CollectorRegistry()
    MultiProcessCollector(registry, str(directory))
    labels = {"task": "t", "queue": "q", "status": "succeeded"}
    return registry.get_sample_value("reliable_jobs_settled_total", labels)


@pytest.mark.parametrize(
    "end",
    [
        "sys.exit()",
        "port._close(); os._exit(0)",
        "worker_process_shutdown.send(sender=None, pid=os.getpid(), exitcode=0); os._exit(0)",
    ],
    ids=["exit", "worker", "pool child"],
)
def test_what_is_pending_when_a_process_ends_is_carried_over(tmp_path: Path, end: str) -> None:
    ran(f"count(3)\nassert shown() is None\n{end}", tmp_path)
    assert in_files(tmp_path) == 3


def test_a_child_has_counts_and_a_thread_of_its_own(tmp_path: Path) -> None:
    code = """
        count(5)
        child = os.fork()
        if child == 0:
            tally.PAUSE = 0
            count(2)  # a thread that the parent had would not carry this over
            deadline = time.monotonic() + 60
            while shown() is None and time.monotonic() < deadline:
                time.sleep(0.01)
            print(shown(), flush=True)
            os._exit(0)
        ended(child)
        tally.carry_over()
        print(shown())
    """
    assert ran(code, tmp_path).split() == ["2.0", "7.0"]


def test_a_child_forked_while_its_parent_carries_over_can_count(tmp_path: Path) -> None:
    """As prometheus-client's lock for all of its files."""
    code = """
        library, held, forking, forked = threading.Lock(), threading.Event(), threading.Event(), threading.Event()

        class Metric:
            def labels(self, *names):
                return self

            def inc(self, count):
                with library:
                    held.set()
                    forking.wait(60)
                    forked.wait(0.5)  # it comes too early where nothing keeps the fork waiting

        os.register_at_fork(before=forking.set, after_in_parent=forked.set)  # before tally's own
        tally.add(Metric(), "t", "q")
        carrier = threading.Thread(target=tally.carry_over)
        carrier.start()
        assert held.wait(60)
        child = os.fork()
        if child == 0:
            signal.alarm(30)  # rather than that it waits for ever
            free = library.acquire(timeout=5)
            count(1)
            tally.carry_over()
            os._exit(0 if free else 1)
        ended(child)
        carrier.join()
        print(shown())
    """
    assert ran(code, tmp_path) == "1.0"


def test_a_scrape_of_this_process_is_exact(tmp_path: Path) -> None:
    code = """
        import urllib.request

        port._open()
        for many in (1, 2):
            count(many)
            with urllib.request.urlopen(f"http://{sys.argv[1]}/metrics", timeout=60) as answer:
                lines = answer.read().decode().splitlines()
            print(*[line for line in lines if line.startswith("reliable_jobs_settled_total")])
        port._close()
    """
    lines = ran(code, tmp_path, listen=f"127.0.0.1:{free_port()}").splitlines()
    assert [line.rpartition(" ")[2] for line in lines] == ["1.0", "3.0"]


def test_greenlets_count_and_none_keeps_the_others_waiting(tmp_path: Path) -> None:
    before = "from gevent import monkey; monkey.patch_all(); from gevent import spawn\n"
    code = """
        tally.PAUSE = 0.01
        for _ in range(20):
            spawn(count, 2)
        deadline = time.monotonic() + 60
        while shown() != 40 and time.monotonic() < deadline:
            time.sleep(0.01)  # the others' turn
        print(shown())
        count(2)
    """
    assert ran(code, tmp_path, before=before) == "40.0"
    assert in_files(tmp_path) == 42


@pytest.mark.servers
def test_a_pools_child_that_has_ended_took_no_count_with_it(stack: Stack, idle_queue: str) -> None:
    where = f"127.0.0.1:{free_port()}"
    worker = stack.worker(pool="prefork", options=["--max-tasks-per-child", "1"], METRICS_LISTEN=where)
    for number in range(3):
        stack.ends(tasks.effect.delay(f"child {number}"))

    def settled() -> dict[str, float]:
        with urllib.request.urlopen(f"http://{where}/metrics", timeout=60) as answer:
            families = text_string_to_metric_families(answer.read().decode())
        return {
            sample.name: sample.value
            for family in families
            for sample in family.samples
            if sample.name in ("reliable_jobs_settled_total", "reliable_jobs_run_seconds_count")
        }

    wait_until(lambda: set(settled().values()) == {3.0}, "each child's job is counted")
    worker.term()
    worker.wait()
