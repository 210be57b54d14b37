"""Sweep: what is due, overdue, lost or old."""

from __future__ import annotations

from qa.mutants.mutant import I1, I2, I4, I7, Mutant

MUTANTS = [
    Mutant(
        "sweep-due",
        "I2",
        "sweep/sweeper.py",
        "        _publish_due(app, alias, report, on_backlog)\n        _publish_overdue",
        "        _publish_overdue",
        (f"{I2}::test_work_due_later_waits_in_the_database_and_survives_the_broker",),
    ),
    Mutant(
        "sweep-overdue",
        "I2",
        "sweep/sweeper.py",
        "        _publish_overdue(app, alias, report)\n",
        "",
        (f"{I1}::test_a_producer_killed_before_its_publish_leaves_a_job_to_the_sweeper",),
    ),
    Mutant(
        "rescue",
        "I2",
        "sweep/sweeper.py",
        "rescued = lifecycle.rescue(alias, settings.SWEEP_LIMIT, actor=actor)",
        "rescued = 0",
        (f"{I4}::test_a_worker_stopped_past_its_lease_wakes_up_to_nothing",),
    ),
    Mutant(
        "count-the-send",
        "I8",
        "lifecycle/sql.py",
        "SET sends = 1, check_at = {from_now}",
        "SET sends = 0, check_at = {from_now}",
        (f"{I2}::test_a_sweep_counts_its_send_so_that_the_next_one_does_not_repeat_it",),
    ),
    Mutant(
        "count-the-send-again",
        "I8",
        "sweep/sends.py",
        "sends=sends + 1, check_at=Now() + datetime.timedelta(seconds=pause)",
        "sends=sends",
        (f"{I2}::test_every_send_doubles_the_time_to_the_next_one",),
    ),
    Mutant(
        "relay-heard",
        "I2",
        "sweep/relay.py",
        "ears = [Ear(alias, self._wake.set) for alias in databases.aliases()]",
        "ears = [Ear(alias, lambda: None) for alias in databases.aliases()]",
        ("tests/sweep/test_relay.py::test_a_relay_is_woken_by_a_commit_long_before_it_would_look",),
    ),
    Mutant(
        "doubling",
        "I8",
        "sweep/sends.py",
        "return min(limit, grace * 2.0 ** min(max(sends, 1) - 1, 32))",
        "return min(limit, grace)",
        (f"{I2}::test_every_send_doubles_the_time_to_the_next_one",),
    ),
    Mutant(
        "overtaking",
        "I8",
        "sweep/lost_messages.py",
        "    return newest\n",
        "    return {}\n",
        ("tests/sweep/test_sweeper.py::test_in_a_queue_that_moves_only_what_was_overtaken_is_sent_again",),
    ),
    Mutant(
        "overtaking-slack",
        "I8",
        "sweep/lost_messages.py",
        "passed = due_at - datetime.timedelta(seconds=OVERTAKING_SLACK)",
        "passed = due_at",
        ("tests/sweep/test_sweeper.py::test_being_overtaken_by_a_little_is_not_being_lost",),
    ),
    Mutant(
        "overtaking-of-later-sends",
        "I8",
        "sweep/lost_messages.py",
        "(Q(sends=1, due_at__lt=passed) | Q(sends__gt=1, check_at__lt=passed))",
        "Q(due_at__lt=passed)",
        ("tests/sweep/test_sweeper.py::test_a_later_send_is_not_overtaken_by_what_stood_before_it",),
    ),
    Mutant(
        "prune-predicate",
        "I2",
        "sweep/pruner.py",
        'ids = list(rows.lock().values_list("pk", flat=True)[:size])',
        'ids = list(rows.values_list("pk", flat=True)[:size])',
        (f"{I7}::test_a_requeue_that_races_a_prune_keeps_the_job_and_its_history",),
    ),
]
