"""Adopted tasks, which must not run twice unasked."""

from __future__ import annotations

from qa.mutants.mutant import ADOPTION, Mutant

MUTANTS = [
    Mutant(
        "adopted-not-atomic",
        "I2",
        "task/adopted_task.py",
        "    atomic = False\n    reruns = False",
        "    reruns = False",
        (f"{ADOPTION}::test_e1_an_adopted_task_commits_as_it_goes",),
    ),
    Mutant(
        "adopted-begun-once-after-a-crash",
        "I2",
        "run/execution.py",
        "return claim.job.crashes > (settings.MAX_CRASHES if task.reruns else 1)",
        "return claim.job.crashes > settings.MAX_CRASHES",
        (f"{ADOPTION}::test_e1_an_adopted_app_keeps_the_document_of_a_failed_script",),
    ),
    Mutant(
        "adopted-begun-once-after-a-database-error",
        "I2",
        "run/outcomes.py",
        "if task.reruns and isinstance(error, DatabaseError)",
        "if isinstance(error, DatabaseError)",
        (f"{ADOPTION}::test_e1_a_database_error_reruns_an_adopted_task_only_if_it_may",),
    ),
    Mutant(
        "adopted-left-out",
        "I2",
        "task/adopted_task.py",
        "if not _is_task(order) or why_plain(cls, order) is None:",
        "if True:",
        (f"{ADOPTION}::test_e4_named_tasks_are_left_out",),
    ),
]
