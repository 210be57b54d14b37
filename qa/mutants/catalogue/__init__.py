"""Every mutant, by the folder whose protection it switches off."""

from __future__ import annotations

from qa.mutants.catalogue import (
    adoption,
    bundles,
    dispatch,
    enqueue,
    groups,
    lifecycle,
    people,
    run,
    sweep,
    task,
    worker,
    workflows,
)

MUTANTS = [
    *task.MUTANTS,
    *adoption.MUTANTS,
    *enqueue.MUTANTS,
    *dispatch.MUTANTS,
    *worker.MUTANTS,
    *run.MUTANTS,
    *bundles.MUTANTS,
    *lifecycle.MUTANTS,
    *groups.MUTANTS,
    *workflows.MUTANTS,
    *sweep.MUTANTS,
    *people.MUTANTS,
]
