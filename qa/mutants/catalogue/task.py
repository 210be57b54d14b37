"""Task: what users subclass."""

from __future__ import annotations

from qa.mutants.mutant import I2, I4, I6, Mutant

MUTANTS = [
    Mutant(
        "fenced-block",
        "I4",
        "task/control.py",
        "if run.lost or not self._holds(run):",
        "if False:",
        (f"{I4}::test_a_worker_stopped_past_its_lease_wakes_up_to_nothing[slow_outside]",),
    ),
    Mutant(
        "ack-before-the-run",
        "I2",
        "task/reliable_task.py",
        "    acks_late = True\n",
        "    acks_late = False\n",
        (f"{I2}::test_a_worker_killed_in_the_function_leaves_the_job_to_the_next",),
    ),
    Mutant(
        "starts-of-hooks-counted",
        "I6",
        "task/guards.py",
        "        stages.delivery.claim_early(task, trail)\n",
        "        pass\n",
        (f"{I6}::test_b1_a_hook_that_kills_its_process_before_the_run_ends_its_job",),
    ),
    Mutant(
        "errors-of-hooks-recorded",
        "I6 I7",
        "task/guards.py",
        "            setattr(cls, name, guarded)\n",
        "            pass\n",
        ("tests/run/test_unreported.py::test_b1_what_celery_fails_for_fails_the_job_at_once",),
    ),
    Mutant(
        "the-tracers-errors-answered",
        "I2",
        "task/reliable_task.py",
        "tracing.that_answers(self, tracer) if tracer is not None else None",
        "tracer",
        ("tests/promises/test_adversary.py::test_a_result_backend_that_fails_starves_no_worker",),
    ),
]
