"""Lifecycle: claims, fences, settlements, and what counts towards a limit."""

from __future__ import annotations

from qa.mutants.mutant import I2, I4, I6, I7, Mutant

MUTANTS = [
    Mutant(
        "row-lock",
        "I4",
        "lifecycle/sql.py",
        "    WHERE id = %s\n    {for_update}\n",
        "    WHERE id = %s\n",
        (f"{I4}::test_of_five_copies_at_once_one_runs",),
    ),
    Mutant(
        "skip-locked",
        "I4",
        "models/jobs.py",
        "skip_locked=skips_locked(connection) and not wait,",
        "skip_locked=False,",
        (f"{I7}::test_a_cancel_of_a_running_job_waits_for_nothing_and_says_running",),
    ),
    Mutant(
        "wait-for-own-token",
        "I4 I6",
        "lifecycle/claims.py",
        ".lock(wait=True)",
        ".lock()",
        (f"{I4}::test_a_claim_waits_for_a_copy_that_only_looks_at_its_row",),
    ),
    Mutant(
        "content-version-check",
        "I3",
        "lifecycle/claims.py",
        "if job.content_version != content_version:",
        "if False:",
        (f"{I7}::test_a_message_of_an_earlier_content_is_dropped",),
    ),
    Mutant(
        "due-check",
        "I2",
        "lifecycle/claims.py",
        "if job.due_at is None or job.due_at > now:",
        "if False:",
        (f"{I7}::test_a_message_that_comes_before_its_job_is_due_does_nothing",),
    ),
    Mutant(
        "final-check",
        "I3",
        "lifecycle/claims.py",
        "    if job.status in FINAL:\n        return Refusal.FINAL\n    if job.content",
        "    if job.content",
        (f"{I4}::test_of_five_copies_one_after_the_other_one_runs",),
        also=(
            (
                "lifecycle/claims.py",
                "if job.status != Status.WAITING:\n        # Neither",
                "if job.status == Status.RUNNING:\n        # Neither",
            ),
        ),
    ),
    Mutant(
        "suspects-alone",
        "I6",
        "lifecycle/claims.py",
        "if job.crashes and _another_suspect_runs(job, using, worker):",
        "if False:",
        (f"{I6}::test_suspects_are_started_one_at_a_time_on_a_worker",),
    ),
    Mutant(
        "conflict-window",
        "I6",
        "lifecycle/delays.py",
        "return max(CONFLICT_WINDOW, limit * (CONFLICT_PAUSE + 2.0 * run))",
        "return CONFLICT_WINDOW",
        ("tests/run/test_ends_of_runs.py::test_a12_a_long_job_that_always_conflicts_ends_failed",),
    ),
    Mutant(
        "fence-epoch",
        "I4",
        "lifecycle/transition.py",
        "else Q(epoch=job.epoch, status=job.status)",
        "else Q()",
        (f"{I4}::test_a_claim_without_a_token_is_fenced_by_the_epoch_alone",),
        also=(
            (
                "lifecycle/sql.py",
                "OF_FIRST_RUN = \"epoch = %s AND status = 'waiting'\"",
                'OF_FIRST_RUN = "(TRUE OR epoch = %s)"',
            ),
        ),
    ),
    Mutant(
        "fence-token",
        "I4",
        "lifecycle/transition.py",
        "Q(token=token_now, status=Status.RUNNING) if",
        "Q() if",
        (f"{I4}::test_a_worker_stopped_past_its_lease_wakes_up_to_nothing",),
        also=(
            (
                "lifecycle/sql.py",
                "OF_TOKEN = \"token = %s AND status = 'running'\"",
                'OF_TOKEN = "(TRUE OR token = %s)"',
            ),
        ),
    ),
    Mutant(
        "crash-given-back",
        "I6",
        "lifecycle/settle.py",
        "crashes=job.crashes - 1, ",
        "",
        (f"{I2}::test_a_child_killed_in_the_function_gives_the_message_back",),
        also=(("lifecycle/sql.py", "crashes = crashes - 1, ", ""),),
    ),
    Mutant(
        "cancel-reads-within-a-limit",
        "I6",
        "lifecycle/later_steps.py",
        "max(DECODED_BYTES, len(job.payload))",
        "10**9",
        ("tests/lifecycle/test_odd_rows.py::test_a_cancel_does_not_unpack_a_bomb[zlib-_cancel]",),
    ),
    Mutant(
        "aliases-in-what-follows",
        "I6",
        "message/decode.py",
        "_is_larger((args, kwargs, embed), limit)",
        "_is_larger((args, kwargs), limit)",
        ("tests/lifecycle/test_odd_rows.py::test_a_cancel_does_not_unpack_a_bomb[aliases-_cancel]",),
    ),
    Mutant(
        "requeue-without-a-message",
        "I7",
        "lifecycle/held_places.py",
        "    if envelope is None:\n",
        "    if False:\n",
        ("tests/lifecycle/test_odd_rows.py::test_a_requeue_passes_over_a_row_without_a_message",),
    ),
]
