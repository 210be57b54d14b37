"""The state machine: which steps there are, and what Hypothesis chooses of each."""

from __future__ import annotations

import contextlib
from typing import Any, ClassVar

from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from qa.model import jobs
from qa.model.actors import CHECKPOINTS
from qa.model.broker import MOODS
from qa.model.place import Place
from qa.model.world import NODES, World
from tests.support import generated

#: Few, so that what happens happens to the same ones.
MOST_RUNS, MOST_JOBS = 3, 4

kinds = st.sampled_from([*jobs.ATOMIC, "outside", "plain", "changes", "outside", "outside"])
moods = st.sampled_from(["up"] * 5 + list(MOODS))
stops = st.sampled_from([*CHECKPOINTS, "body"])
which = st.integers(0, 7)
nodes = st.sampled_from(NODES)
#: Less than any back-off; past a crash's back-off and a lease; past one look, some looks, all looks; past retention.
pauses = st.sampled_from([1.0, 9.0, 17.0, 33.0, 70.0, 700.0, 100_000.0])


class Machine(RuleBasedStateMachine):
    #: Set by machine().
    place: ClassVar[Place]

    def __init__(self) -> None:
        super().__init__()
        self._stack = contextlib.ExitStack()
        self.world = self._stack.enter_context(World.of(self.place))

    def teardown(self) -> None:
        with self._stack:
            if not self.world.over:
                self.world.finish()

    @invariant()
    def every_promise_is_kept(self) -> None:
        self.world.check()

    # --- producers ----------------------------------------------------------------------------------------------------

    @initialize(kind=kinds)
    def first(self, kind: str) -> None:
        self.world.enqueue(kind)

    def _has_room(self) -> bool:
        return len(self.world.jobs) < MOST_JOBS

    @precondition(_has_room)
    @rule(kind=kinds, mood=moods, countdown=st.sampled_from([0, 0, 20]), expires=st.sampled_from([None, None, 60]))
    def enqueue(self, kind: str, mood: str, countdown: float, expires: float | None) -> None:
        self.world.enqueue(kind, mood=mood, countdown=countdown, expires=expires)

    @precondition(_has_room)
    @rule(
        kind=st.sampled_from(["plain", "changes"]), key=st.sampled_from([None, "a", "a", "b"]), savepoint=st.booleans()
    )
    def enqueue_with_a_key_or_for_nothing(self, kind: str, key: str | None, savepoint: bool) -> None:
        if key is None:
            self.world.roll_back(kind, savepoint=savepoint)
        else:
            self.world.enqueue(kind, key=key)

    # --- the broker ---------------------------------------------------------------------------------------------------

    def _has_messages(self) -> bool:
        return bool(self.world.broker.ready)

    @precondition(_has_messages)
    @rule(n=which)
    def lose(self, n: int) -> None:
        ready = self.world.broker.ready
        del ready[n % len(ready)]

    @precondition(lambda self: self.world.broker.ever)
    @rule(n=which, redelivered=st.booleans())
    def copy(self, n: int, redelivered: bool) -> None:
        """Of any message that ever was, the latest first."""
        ever = self.world.broker.ever
        self.world.copy(ever[-1 - n % len(ever)], redelivered)

    # --- workers ------------------------------------------------------------------------------------------------------

    def _may_start(self) -> bool:
        return self._has_messages() and len(self.world.runs) < MOST_RUNS

    @precondition(_may_start)
    @rule(n=which, stop_at=stops, node=nodes, then=st.sampled_from(["stay", "stay", "disconnect", "kill"]))
    def deliver_and_stop(self, n: int, stop_at: str, node: str, then: str) -> None:
        ready = self.world.broker.ready
        run = self.world.deliver(ready[n % len(ready)], stop_at=stop_at, node=node)
        if run is not None and then != "stay":
            getattr(self.world, then)(run)

    @precondition(_may_start)
    @rule(n=which, node=nodes)
    def deliver(self, n: int, node: str) -> None:
        ready = self.world.broker.ready
        self.world.deliver(ready[n % len(ready)], node=node)

    def _has_runs(self) -> bool:
        return bool(self.world.runs)

    def _run(self, n: int) -> Any:
        return self.world.runs[n % len(self.world.runs)]

    @precondition(_has_runs)
    @rule(n=which, stop_at=st.none() | stops, loses_answer=st.sampled_from([False, False, True]))
    def resume(self, n: int, stop_at: str | None, loses_answer: bool) -> None:
        self.world.resume(self._run(n), stop_at, loses_answer=loses_answer)

    @precondition(_has_runs)
    @rule(n=which, what=st.sampled_from(["kill", "disconnect"]))
    def harm(self, n: int, what: str) -> None:
        getattr(self.world, what)(self._run(n))

    @precondition(lambda self: self.world.leased())
    @rule(n=which)
    def beat(self, n: int) -> None:
        leased = self.world.leased()
        self.world.beat(leased[n % len(leased)])

    # --- time, sweepers, people ---------------------------------------------------------------------------------------

    @rule(seconds=pauses, mood=moods)
    def time_passes_and_somebody_sweeps(self, seconds: float, mood: str) -> None:
        self.world.tick(seconds)
        self.world.sweep(mood=mood)

    @rule(seconds=pauses)
    def time_passes(self, seconds: float) -> None:
        self.world.tick(seconds)

    @rule(n=which, wish=st.sampled_from(["requeue", "requeue", "cancel", "prune"]))
    def somebody_asks(self, n: int, wish: str) -> None:
        if wish == "prune":
            self.world.prune()
        else:
            getattr(self.world, wish)(self._job(n))

    def _job(self, n: int) -> Any:
        known = list(self.world.jobs)
        return known[n % len(known)]


def profile(examples: int, *, steps: int = 25, derandomize: bool = True, **more: Any) -> settings:
    """The same histories each time, unless told otherwise."""
    return generated.examples(examples, stateful_step_count=steps, derandomize=derandomize, **more)


FIND_ONLY: dict[str, Any] = {"phases": [Phase.generate], "report_multiple_bugs": False}


def machine(place: Place) -> type[Machine]:
    return type("Model", (Machine,), {"place": place})
