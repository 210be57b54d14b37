"""For each protection the shortest history that breaks a promise without it. With it, each of them ends well."""

from __future__ import annotations

from collections.abc import Callable

from qa.model.world import World

SCENARIOS: dict[str, Callable[[World], None]] = {}


def needs(*protections: str) -> Callable[[Callable[[World], None]], Callable[[World], None]]:
    """The history needs any one of these to end well."""

    def note(scenario: Callable[[World], None]) -> Callable[[World], None]:
        SCENARIOS.update(dict.fromkeys(protections, scenario))
        return scenario

    return note


def _only_message(world: World):  # type: ignore[no-untyped-def]
    (message,) = world.broker.ready
    return message


def _two_copies(world: World, kind: str = "plain", stop_at: str | None = None) -> None:
    world.enqueue(kind)
    world.copy(world.broker.ever[0])
    for _ in range(2):
        world.deliver(world.broker.ready[0], stop_at=stop_at)


@needs("row-lock")
def two_copies_at_once(world: World) -> None:
    _two_copies(world, stop_at="body")


@needs("skip-locked")
def a_person_asks_while_a_body_runs(world: World) -> None:
    job = world.enqueue()
    world.deliver(_only_message(world), stop_at="body")
    assert job is not None
    world.cancel(job)


@needs("final-check")
def a_copy_after_the_settlement(world: World) -> None:
    _two_copies(world)


@needs("due-check")
def a_copy_before_the_second_attempt_is_due(world: World) -> None:
    _two_copies(world, "flaky")


@needs("content-version-check")
def a_copy_of_an_earlier_content(world: World) -> None:
    world.enqueue("changes")
    world.copy(world.broker.ever[0])
    world.deliver(world.broker.ready[0])
    world.tick(1)
    world.deliver(world.broker.ready[0])


@needs("fence-epoch")
def a_lost_session_finds_its_job_settled_by_another(world: World) -> None:
    world.enqueue()
    world.copy(world.broker.ever[0])
    lost = world.deliver(world.broker.ready[0], stop_at="body")
    assert lost is not None
    world.disconnect(lost)
    world.deliver(world.broker.ready[0])
    world.check()
    world.resume(lost)


@needs("fence-token", "fenced-block")
def a_run_asleep_past_its_lease_wakes_up(world: World) -> None:
    for stop_at in ("late", "body"):
        world.enqueue("outside")
        asleep = world.deliver(_only_message(world), stop_at=stop_at)
        assert asleep is not None
        world.tick(9)
        world.sweep()
        world.tick(2)
        world.sweep()
        world.deliver(world.broker.ready[-1])
        world.check()
        world.resume(asleep)
        world.check()


@needs("careful-path", "crash-bound")
def a_body_that_kills_its_process_each_time(world: World) -> None:
    world.enqueue()
    for _ in range(5):
        while world.broker.ready:
            run = world.deliver(world.broker.ready[0], stop_at="body")
            assert run is not None
            if run.actor.at != "body":
                world.resume(run)
                break
            world.kill(run)
            world.check()
        world.tick(20)
        world.sweep()
        world.check()


@needs("crash-given-back")
def a_redelivered_job_that_retries(world: World) -> None:
    """Each of its runs reports, and its starts don't add up."""
    world.enqueue("flaky")
    world.copy(world.broker.ever[0], redelivered=True)
    del world.broker.ready[0]
    world.deliver(_only_message(world))
    (row,) = world.rows().values()
    world.claim(row.crashes == 0, f"I6: {row} reported, and its start counts as a crash")
    world.check()


@needs("interruption-bound")
def a_body_that_loses_its_session_each_time(world: World) -> None:
    world.enqueue()
    for _ in range(4):
        for message in list(world.broker.ready):
            run = world.deliver(message, stop_at="body")
            if run is not None:
                world.disconnect(run)
                world.resume(run)
        world.tick(40)
        world.sweep()
    (row,) = world.rows().values()
    world.claim(row.status == "failed", f"I6: {row} has been interrupted four times")


@needs("broken-commit-is-looked-into", "broken-commit-is-recorded")
def a_commit_whose_answer_is_lost(world: World) -> None:
    """The body is done, and the connection lost with the settlement and the COMMIT, which travel together. (The message
    is acknowledged either way: the row is what tells.)"""
    world.enqueue("spawns")
    run = world.deliver(_only_message(world), stop_at="body")
    assert run is not None
    world.disconnect(run)
    world.resume(run)
    (row,) = world.rows().values()
    world.claim(row.interruptions == 1, f"I2: {row}: a run that lost its commit said nothing of it")
    world.claim("the worker failed" not in row.error, f"I7: {row}: the worker is blamed for a lost connection")


@needs("savepoint")
def a_body_that_fails(world: World) -> None:
    world.enqueue("fails")
    world.deliver(_only_message(world))


@needs("expiry")
def a_job_that_is_met_after_its_time(world: World) -> None:
    world.enqueue(expires=60)
    world.tick(61)
    world.deliver(_only_message(world))
    (row,) = world.rows().values()
    world.claim(row.status == "expired", f"I7: {row}")


@needs("doubling")
def three_sends(world: World) -> None:
    world.enqueue()
    for _ in range(3):
        world.tick(17)
        world.sweep()


@needs("count-the-send-again")
def two_sweeps_of_one_lost_message(world: World) -> None:
    world.enqueue()
    world.tick(17)
    world.sweep()
    world.sweep()


@needs("overtaking")
def a_job_that_merely_waits_in_a_queue_that_moves(world: World) -> None:
    first, second = world.enqueue(), world.enqueue()
    assert first is not None
    assert second is not None
    world.tick(17)
    world.deliver(world.broker.ready[0])
    world.sweep()


@needs("overtaking-slack")
def a_job_that_is_overtaken_by_a_little(world: World) -> None:
    world.enqueue()
    world.tick(2)
    world.enqueue()
    world.tick(17)
    world.deliver(world.broker.ready[1])
    world.sweep()


@needs("sweep-due")
def a_delayed_job(world: World) -> None:
    world.enqueue(countdown=20)
    world.tick(21)
    world.sweep()


@needs("sweep-overdue")
def a_lost_message(world: World) -> None:
    world.enqueue()
    world.broker.ready.clear()
    world.tick(17)
    world.sweep()


@needs("rescue")
def a_killed_run(world: World) -> None:
    world.enqueue("outside")
    run = world.deliver(_only_message(world), stop_at="body")
    assert run is not None
    world.kill(run)
    world.tick(9)
    world.sweep()


@needs("publish-before-commit", "weak-batch")
def a_transaction_that_is_rolled_back(world: World) -> None:
    world.roll_back()
    world.roll_back(savepoint=True)
