"""Dispatch: committed rows become confirmed messages."""

from __future__ import annotations

from qa.mutants.mutant import I1, I5, Mutant

MUTANTS = [
    Mutant(
        "publish-before-commit",
        "I1",
        "dispatch/on_commit.py",
        "transaction.on_commit(hook, using=alias)",
        "hook()",
        (f"{I1}::test_no_message_goes_out_before_the_commit",),
    ),
    Mutant(
        "weak-batch",
        "I1",
        "dispatch/on_commit.py",
        "return self._by_alias.setdefault(alias, weakref.WeakValueDictionary())",
        "return self._by_alias.setdefault(alias, {})",
        (f"{I1}::test_a_savepoint_rolled_back_takes_its_jobs_along_and_no_others",),
    ),
    Mutant(
        "one-hook-for-all",
        "I1 I2",
        "dispatch/on_commit.py",
        "transaction.on_commit(hook, using=alias)",
        "len(hook.pending) > 1 or transaction.on_commit(hook, using=alias)",
        (f"{I1}::test_a_savepoint_rolled_back_takes_its_jobs_along_and_no_others",),
    ),
    Mutant(
        "mandatory",
        "I7",
        "dispatch/amqp_pipeline.py",
        "(0, exchange, routing_key, mandatory, False)",
        "(0, exchange, routing_key, False, False)",
        (f"{I5}::test_a_returned_message_is_visible_and_goes_out_once_it_is_bound",),
    ),
    Mutant(
        "last-look",
        "I9",
        "dispatch/amqp_pipeline.py",
        "timeout=max(LOOK, deadline - time.monotonic())",
        "timeout=time_left(deadline)",
        ("tests/dispatch/test_publisher.py::test_a_confirm_that_has_arrived_counts_after_a_stall",),
    ),
    Mutant(
        "breaker",
        "I9",
        "dispatch/publisher.py",
        "            self._open = True\n",
        "            self._open = False\n",
        (f"{I5}::test_a_broker_away_at_commit_delays_the_job_and_not_the_request",),
    ),
    Mutant(
        "probe-with-a-body",
        "I9",
        "dispatch/connection.py",
        '"reliable_jobs.probe", b"probe",',
        '"reliable_jobs.probe", b"",',
        (f"{I5}::test_a_broker_under_its_memory_alarm_never_confirms_and_loses_nothing",),
    ),
    Mutant(
        "time-limits-reach-the-function",
        "I5",
        "dispatch/on_commit.py",
        "            raise  # the task function's that commits here; the rows are safe\n",
        "            pass\n",
        ("tests/dispatch/test_publisher_errors.py::test_b3_a_time_limit_during_a_publish_reaches_the_function",),
    ),
]
