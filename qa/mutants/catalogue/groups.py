"""Groups: who decides them, when, and what a requeue or the pruner may do meanwhile."""

from __future__ import annotations

from qa.mutants.mutant import Mutant

GROUPS = "tests/workflow/test_groups.py"
CHORDS = "tests/workflow/test_chords.py"

MUTANTS = [
    Mutant(
        "look-after-the-commit",
        "I2",
        "run/delivery.py",
        "        if ended.owes is not None:\n",
        "        if False:\n",
        (f"{CHORDS}::test_the_body_is_called_once_with_the_results_in_order",),
    ),
    Mutant(
        "look-behind-the-commit",
        "I2",
        "run/joined.py",
        "*before, said, *after, *behind]",
        "*before, said, *behind, *after]",
        ("tests/run/test_joined.py::test_the_look_behind_the_commit_sees_what_others_commit_before_it",),
        also=(
            (
                "run/joined.py",
                'self._skip(context["cursor"], [sql, *after])',
                'self._skip(context["cursor"], [sql])',
            ),
        ),
    ),
    Mutant(
        "debt-handed-on",
        "I3",
        "run/settling.py",
        "claim.hands_on = bool(heir.taken)",
        "claim.hands_on = False",
        (f"{CHORDS}::test_the_body_is_called_once_with_the_results_in_order",),
    ),
    Mutant(
        "group-lock",
        "I3",
        "lifecycle/groups.py",
        "    return rows.select_for_update(\n"
        "        skip_locked=skips_locked(connection) and not wait, no_key=locks_no_keys(connection)\n"
        "    ).first()\n",
        "    return rows.first()\n",
        (f"{GROUPS}::test_a_part_requeued_between_the_look_and_the_decision_is_waited_for",),
    ),
    Mutant(
        "decision-reads-what-is-committed",
        "I2",
        "workflow/chords.py",
        "        if not nested:\n",
        "        if False:\n",
        (f"{GROUPS}::test_a_part_requeued_between_the_look_and_the_decision_is_waited_for",),
        also=(
            (
                "lifecycle/groups.py",
                "groups.filter(pk__in=written).update(",
                "groups.none().update(",
            ),
        ),
    ),
    Mutant(
        "requeue-opens-the-group",
        "I7",
        "lifecycle/operations.py",
        "        groups.reopen_for(ids, using)\n",
        "",
        (f"{GROUPS}::test_a_requeue_during_the_decision_opens_the_group_again",),
    ),
    Mutant(
        "sweep-of-groups",
        "I2",
        "sweep/sweeper.py",
        "decided = chords.sweep(app, alias)",
        "decided = 0",
        (f"{GROUPS}::test_a_decision_that_nobody_made_is_made_by_the_sweep",),
    ),
    Mutant(
        "inner-groups-are-waited-for",
        "I3",
        "lifecycle/groups.py",
        "WHERE owes = %s AND state = 'open'\n",
        "WHERE owes = %s AND state = 'none'\n",
        (f"{GROUPS}::test_an_inner_group_that_fails_fails_the_outer_one",),
    ),
    Mutant(
        "parts-are-kept",
        "I2",
        "sweep/pruner.py",
        "    return Job.objects.using(alias).filter(~Exists(waiting))",
        "    return Job.objects.using(alias).all()",
        (f"{GROUPS}::test_prune_at_age_0_takes_nothing_that_a_group_still_wants",),
    ),
    Mutant(
        "body-that-cannot-be-written",
        "I6",
        "workflow/chords.py",
        "        decided, outer = _decide(app, group_id, using, wait=wait, trouble=error)\n",
        "        raise\n",
        (f"{GROUPS}::test_a_body_that_cannot_be_written_fails_the_group_once",),
    ),
    Mutant(
        "plain-parts-are-asked-for",
        "I2",
        "sweep/sweeper.py",
        "        plain_parts.sweep(app, alias)\n",
        "",
        ("tests/workflow/test_mixed_chords.py::test_the_result_backend_is_asked_where_a_worker_died_unheard",),
    ),
    Mutant(
        "later-steps-of-a-cancelled-one",
        "I7",
        "lifecycle/operations.py",
        "            cancel_behind(locked, using)\n",
        "",
        ("tests/workflow/test_followups.py::test_the_later_steps_of_a_cancelled_one_end_and_come_back",),
    ),
    Mutant(
        "no-requeue-without-a-message",
        "I7",
        "lifecycle/operations.py",
        "if (why := why_never_sent(job))",
        "if (why := '')",
        (f"{CHORDS}::test_a_body_that_was_never_started_is_not_requeued_by_itself",),
    ),
    Mutant(
        "held-rows-are-not-handed-back",
        "I3",
        "lifecycle/operations.py",
        "filter(pk=job_id, due_at__isnull=False).still",
        "filter(pk=job_id).still",
        ("tests/workflow/test_replace.py::test_a_copy_that_is_handed_back_begins_no_replaced_job_anew",),
        also=(
            (
                "lifecycle/operations.py",
                "rows = rows.filter(content_version=content_version)",
                "rows = rows.filter()",
            ),
        ),
    ),
]
