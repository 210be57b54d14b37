"""Bundles: many jobs in one transaction."""

from __future__ import annotations

from qa.mutants.mutant import Mutant

MUTANTS = [
    Mutant(
        "bundle-taken-apart",
        "I2 I6",
        "run/bundle.py",
        "kept_connections.active and not redelivered\n",
        "kept_connections.active\n",
        ("tests/run/test_bundle.py::test_a_stopped_process_keeps_nothing_and_the_jobs_run_alone",),
    ),
    Mutant(
        "bundle-savepoints",
        "I3",
        "run/bundle_transaction.py",
        "with transaction.atomic(using=self.using) if self.singly else nullcontext():",
        "with nullcontext():",
        ("tests/run/test_bundle.py::test_one_that_does_not_succeed_plainly_leaves_its_neighbours_alone",),
    ),
    Mutant(
        "bundle-rolled-back",
        "I3",
        "run/bundle_transaction.py",
        "            self._broken, self.worth_singling = True, not for_good\n",
        "            pass\n",
        ("tests/run/test_bundle.py::test_one_that_does_not_succeed_plainly_leaves_its_neighbours_alone",),
    ),
    Mutant(
        "bundle-claim",
        "I4",
        "lifecycle/sql.py",
        "task = %s AND status = 'waiting' AND due_at",
        "task = %s AND due_at",
        ("tests/run/test_bundle.py::test_a_copy_of_a_bundle_runs_nothing_again",),
        also=(("lifecycle/sql.py", "AND job.status = 'waiting'", ""),),
    ),
]
