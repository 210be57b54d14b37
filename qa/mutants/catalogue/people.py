"""What people do: pauses, acts on many jobs, and what they hear of jobs."""

from __future__ import annotations

from qa.mutants.mutant import Mutant

PAUSES = "tests/lifecycle/test_pauses.py"
ACTS = "tests/sweep/test_acts.py"

MUTANTS = [
    Mutant(
        "no-claim-under-a-pause",
        "I7",
        "lifecycle/claims.py",
        "    if locked.paused_by:\n",
        "    if False:\n",
        (f"{PAUSES}::test_a_pause_between_insert_and_commit_holds",),
    ),
    Mutant(
        "a-pause-is-locked-by-a-refusal",
        "I2",
        "lifecycle/pauses.py",
        "locked = by_task.select_for_update(no_key=locks_no_keys(connections[using]))",
        "locked = by_task",
        (f"{PAUSES}::test_a_resume_waits_for_a_refusal_and_brings_its_row_back",),
    ),
    Mutant(
        "paused-queues-are-passed-over",
        "I8",
        "sweep/sweeper.py",
        "        if pause.kind == PauseKind.QUEUE and pause.name in due:\n",
        "        if False:\n",
        (f"{PAUSES}::test_the_sweep_sends_nothing_that_is_paused_and_all_after_the_resume",),
    ),
    Mutant(
        "an-act-has-a-cutoff",
        "I8",
        "sweep/acts.py",
        '.filter(**{f"{column}__lte": act.cutoff})',
        "",
        (f"{ACTS}::test_a_requeued_job_that_fails_at_once_is_not_taken_again",),
    ),
    Mutant(
        "an-act-asks-whether-its-user-may",
        "I7",
        "sweep/acts.py",
        "        if why := _not_allowed(act):\n",
        '        if why := "":\n',
        (f"{ACTS}::test_a_user_who_is_deactivated_half_way_stops_the_act",),
    ),
    Mutant(
        "the-sweep-loop-carries-acts-out",
        "I2",
        "sweep/sweeper.py",
        "        report.more |= acts.sweep(alias)\n",
        "",
        ("tests/sweep/test_acts_servers.py::test_a_cancel_of_all_ends_while_every_worker_is_busy[solo]",),
    ),
    Mutant(
        "an-act-takes-no-searchs-finds",
        "I7",
        "admin/acts.py",
        '            if chosen.get("q"):\n',
        "            if False:\n",
        ("tests/admin/test_acts_pages.py::test_what_a_search_finds_is_no_filter_of_an_act",),
    ),
    Mutant(
        "who-may-not-stop-is-refused",
        "I7",
        "admin/one_job.py",
        "        if not self.has_stop_permission(request):\n",
        "        if False:\n",
        ("tests/admin/test_every_page.py::test_each_permission_opens_its_own_pages_only[stop_job]",),
    ),
    Mutant(
        "no-receiver-closes-the-runs-connection",
        "I3",
        "signals.py",
        "kept = _kept_open(connection) if in_transaction(connection) else contextlib.nullcontext()",
        "kept = contextlib.nullcontext()",
        ("tests/test_signals.py::test_a_receiver_of_started_that_closes_the_connection_fails_no_job",),
    ),
]
