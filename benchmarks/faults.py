"""Throughput before, during and after a fault: what the public benchmarks of job queues show.

Each fault has a run of its own, on a PostgreSQL that this benchmark starts: a deep backlog of one-INSERT jobs, two
workers of one process each, and a supervisor that starts a worker again a second after it has ended. Rates are counted
from the times that the server wrote beside the effects.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import psycopg

from benchmarks.harness import Arena, Benchmark, Contender, Servers, Void
from benchmarks.rivals import NotRun
from tests.support.private_servers import PrivatePostgres, ServerFailed, ServerMissing, parents, wait_until

WORKERS = 2
#: Seconds until the supervisor starts a worker again.
RESTART = 1.0
#: Seconds between two kills.
KILL_EVERY = 2.0
#: The backlog is so many times what the trial's rate does until the last phase ends.
RESERVE = 1.7
#: The part of the time for a remedy that a contender without one is waited for. The broker returns a lost worker's
#: messages at once.
NO_REMEDY = 1 / 6
#: Seconds within which a fault has to be over, beyond its span.
PATIENCE = 120.0


@dataclasses.dataclass
class Site:
    """What a fault strikes."""

    arena: Arena
    postgres: PrivatePostgres
    #: Seconds that a fault lasts which has no end of its own.
    span: float
    #: When workers that have ended are started again.
    due: list[float] = dataclasses.field(default_factory=list)
    started_again: int = 0

    def supervise(self) -> None:
        now = time.monotonic()
        self.due += [now + RESTART] * self.arena.forget_ended()
        while self.due and self.due[0] <= now:
            del self.due[0]
            self.arena.start(self.arena.rival.workers())
            self.started_again += 1

    def watch(self, condition: Callable[[], object], seconds: float, every: float = 0.02) -> bool:
        """Supervise until the condition is true. Returns whether it became so within these seconds."""
        deadline = time.monotonic() + seconds
        while not (met := bool(condition())) and time.monotonic() < deadline:
            self.supervise()
            time.sleep(every)
        return met

    def watch_until(self, moment: float) -> None:
        self.watch(lambda: time.time() >= moment, moment - time.time())

    def unfinished(self) -> int:
        """Jobs that the contender knows and has not ended."""
        rival = self.arena.rival
        return self.arena.number(rival.unfinished) if rival.unfinished else self.arena.messages()


# --- the faults; each returns when its cause is gone ------------------------------------------------------------------


def restart(site: Site) -> None:
    site.postgres.restart("fast")


def crash(site: Site) -> None:
    site.postgres.restart("immediate")


def end_sessions(site: Site) -> None:
    site.arena.sql(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
        " AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
    )


def kill_worker(site: Site) -> None:
    victim = site.arena.alive()[0]
    os.killpg(victim, signal.SIGKILL)

    def replaced() -> bool:
        alive = site.arena.alive()
        return victim not in alive and len(alive) == WORKERS

    wait_until(replaced, PATIENCE, "a worker in place of the killed one")


def kill_repeatedly(site: Site) -> None:
    """Every time the oldest child of the workers, or the oldest worker where they have no children."""

    def children() -> list[int]:
        leaders = site.arena.alive()
        return sorted(child for child, parent in parents().items() if parent in leaders)

    victims = children if children() else site.arena.alive
    end = time.monotonic() + 2 * site.span
    while time.monotonic() < end:
        with contextlib.suppress(ProcessLookupError):
            for victim in victims()[:1]:  # none while all are being started again
                os.kill(victim, signal.SIGKILL)
        time.sleep(min(KILL_EVERY, max(0.0, end - time.monotonic())))


def pause(site: Site) -> None:
    leaders = site.arena.alive()
    for number in (signal.SIGSTOP, signal.SIGCONT):
        for leader in leaders:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(leader, number)
        if number == signal.SIGSTOP:
            time.sleep(site.span)


#: By what the figures call them: the fault, and how many spans it lasts.
FAULTS: dict[str, tuple[Callable[[Site], None], float]] = {
    "restart": (restart, 1),
    "crash": (crash, 1),
    "sessions": (end_sessions, 1),
    "worker killed": (kill_worker, 1),
    "kills": (kill_repeatedly, 2),
    "pause": (pause, 1),
}


# --- a run ------------------------------------------------------------------------------------------------------------


def measure(
    arena: Arena, trial: int, before: float, span: float, after: float, remedy: float, has_remedy: bool = True
) -> dict[str, float]:
    figures: dict[str, float] = {}
    waits = remedy * (1 if has_remedy else NO_REMEDY)
    try:
        with (
            PrivatePostgres(settings=arena.server_settings()) as postgres,
            contextlib.closing(Servers(postgres.url)) as servers,
        ):
            with contextlib.closing(Run(arena.on(servers), postgres, span)) as run:
                rate = run.trial(trial)
            for name, (fault, spans) in FAULTS.items():
                with contextlib.closing(Run(arena.on(servers), postgres, span)) as run:
                    run.begin(int(RESERVE * rate * (before + spans * span + after)))
                    found = run.strike(fault, before, after)
                    found |= run.finish(rate, waits)
                figures |= {f"{name}: {figure}": value for figure, value in found.items()}
    except ServerMissing as error:
        raise NotRun(str(error)) from None
    except (ServerFailed, psycopg.OperationalError) as error:
        raise Void(str(error)) from error
    return figures


class Run:
    """One fault of one contender."""

    def __init__(self, arena: Arena, postgres: PrivatePostgres, span: float) -> None:
        self._arena = arena
        self._site = Site(arena, postgres, span)
        self._jobs = 0

    def close(self) -> None:
        self._arena.drop()

    def begin(self, jobs: int) -> None:
        """Warm workers let go before a full queue."""
        arena = self._arena
        self._jobs = jobs
        arena.rival.processes = 1
        arena.open()
        for _ in range(WORKERS - 1):
            arena.start(arena.rival.workers())
        arena.start_workers()
        with arena.paused():
            arena.refill(jobs)
        arena.check_processes()
        arena.forget_ended()  # those that filled the queue

    def trial(self, jobs: int) -> float:
        """Jobs per second without a fault, for the size of the backlog."""
        self.begin(jobs)
        return self._arena.drain(jobs, 60 + jobs / 20)

    def strike(self, fault: Callable[[Site], None], before: float, after: float) -> dict[str, float]:
        """The phases. Their rates, and the longest time without an effect from the fault's beginning until the last
        phase's end."""
        site, arena = self._site, self._arena
        if not site.watch(lambda: arena.sql("SELECT 1 FROM benchmark_effect LIMIT 1"), PATIENCE):
            raise Void(f"no effect within {PATIENCE:g} s")
        first = arena.sql("SELECT extract(epoch FROM min(at))::float FROM benchmark_effect")[0][0]
        site.watch_until(first + before)
        struck = time.time()
        with ThreadPoolExecutor(1) as pool:
            striking = pool.submit(fault, site)
            over = site.watch(striking.done, PATIENCE + 2 * site.span)
        if not over:
            raise Void("the fault did not end")
        striking.result()
        gone = time.time()
        end = max(gone + after, struck + site.span)
        site.watch_until(end)
        arena.disconnect()  # from a server that may not be the same any more
        if self._effects()[1] == self._jobs:
            raise Void(f"all {self._jobs:,} jobs were done before the last phase ended")
        normal = self._rate(first, struck)
        gap = arena.sql(
            "SELECT max(at - before) FROM (SELECT at, lag(at, 1, %s::float) OVER (ORDER BY at) AS before FROM"
            " (SELECT extract(epoch FROM at)::float AS at FROM benchmark_effect UNION ALL SELECT %s) AS times"
            " WHERE at BETWEEN %s AND %s) AS gaps",
            *(struck, end, struck, end),
        )[0][0]
        return {
            "jobs/s before": normal,
            "during/before": self._rate(struck, max(gone, struck + site.span)) / normal,
            "after/before": self._rate(gone, gone + after) / normal,
            "longest gap, s": gap,
        }

    def _rate(self, begin: float, end: float) -> float:
        """Effects per second between two times."""
        found = self._arena.sql(
            "SELECT count(*) FROM benchmark_effect WHERE at >= to_timestamp(%s) AND at < to_timestamp(%s)", begin, end
        )
        return float(found[0][0] / (end - begin))

    def finish(self, rate: float, remedy: float) -> dict[str, float]:
        """Let the workers go on until no job is left, or until no job has got its effect for ``remedy`` seconds; and
        count."""
        site = self._site
        done, changed = -1, time.monotonic()

        def at_rest() -> bool:
            nonlocal done, changed
            now = self._effects()[1]
            if now != done:
                done, changed = now, time.monotonic()
            elif time.monotonic() > changed + remedy:
                return True
            return now == self._jobs and not site.unfinished()

        seconds = remedy + PATIENCE + 4 * self._jobs / rate
        if not site.watch(at_rest, seconds, every=0.5):
            raise Void(f"the rest of {self._jobs:,} jobs was not done within {seconds:.0f} s")
        site.arena.end_processes()  # a job that is being done a second time has its effect now, too
        effects, distinct = self._effects()
        return {
            "lost": float(self._jobs - distinct),
            "doubled": float(effects - distinct),
            "workers started again": float(site.started_again),
        }

    def _effects(self) -> tuple[int, int]:
        """How many there are, and of how many jobs."""
        found, distinct = self._arena.sql("SELECT count(*), count(DISTINCT number) FROM benchmark_effect")[0]
        return int(found), int(distinct)


BENCHMARK = Benchmark(
    about="two workers of one process each before a deep backlog, and a fault: PostgreSQL restarted (fast), or crashed "
    "(immediate); all sessions ended by pg_terminate_backend; all processes of one worker killed; a pool child, or the "
    "worker where it has none, killed every 2 s for two spans; the workers stopped by SIGSTOP for a span. A supervisor "
    "starts again after 1 s what has ended. 'during' is at least 'span' seconds from the fault's beginning; 'after' "
    "begins when its cause is gone, and may overlap; the gap is looked for until both are over. 'lost' are jobs that "
    "have no effect when no job has got one for 'remedy' seconds (a sixth of them for Celery, which has only the "
    "broker's redelivery); 'doubled' are effects too many. All by default: a ReliableTask's worker sweeps every 10 s, "
    "pgqueuer takes a silent worker's jobs back after 30 s, procrastinate leaves them to the user's periodic task. "
    "With its connections kept Celery does not replace a broken one. The settings of PostgreSQL are those of the head",
    contenders=(
        Contender("Celery as Django sets it up", "celery:BareCelery", {"has_remedy": False}),
        Contender("Celery, connections kept", "celery:KeptCelery", {"has_remedy": False}),
        Contender("Celery, kept, acks late", "celery:KeptCeleryLate", {"has_remedy": False}),
        Contender("ReliableTask", "reliable:OnCommit"),
        Contender("procrastinate", "procrastinate:Procrastinate"),
        Contender("pgqueuer (async)", "pgqueuer:Pgqueuer", {"trial": 8000}),
    ),
    measure=measure,
    normal={"trial": 2000, "before": 8.0, "span": 5.0, "after": 8.0, "remedy": 60.0},
    quick={"trial": 500, "before": 1.0, "span": 1.0, "after": 1.0, "remedy": 6.0},
    baseline="Celery, connections kept",
    rounds=1,
)
