"""Cancelled workflows, and calls that become rows."""

from __future__ import annotations

from qa.mutants.mutant import Mutant

CANCELLING = "tests/workflow/test_cancelling.py"
CAPTURE = "tests/workflow/test_capture.py"
OUTBOX = "tests/workflow/test_outbox_tasks.py"

MUTANTS = [
    Mutant(
        "no-claim-in-a-cancelled-workflow",
        "I7",
        "lifecycle/claims.py",
        "    if locked.workflow_cancelled:\n",
        "    if False:\n",
        (f"{CANCELLING}::test_a_cancel_that_broke_off_is_ended_by_the_sweep",),
    ),
    Mutant(
        "nothing-follows-in-a-cancelled-workflow",
        "I7",
        "workflow/cancelling.py",
        "    if not workflows.is_cancelled(as_uuid(ended.root), ended.using):\n",
        "    if True:\n",
        (f"{CANCELLING}::test_the_settlement_itself_writes_what_follows_as_cancelled",),
    ),
    Mutant(
        "a-groups-tasks-have-one-root",
        "I7",
        "workflow/capture.py",
        "        root_id = self._group_id if self.app.current_worker_task is None else None\n",
        "        root_id = None\n",
        (f"{CANCELLING}::test_any_id_that_is_written_names_the_workflow",),
    ),
    Mutant(
        "a-plain-task-goes-on-past-its-transaction",
        "I2",
        "workflow/capture.py",
        " or any(map(options.get, _GOES_ON)):\n",
        ":\n",
        (f"{OUTBOX}::test_a_plain_task_that_goes_on_out_of_a_transaction_is_not_lost",),
    ),
    Mutant(
        "no-subscription-before-the-commit",
        "I9",
        "compat/celery_groups.py",
        "    if _calls.results is None:\n",
        "    if True:\n",
        (f"{CAPTURE}::test_nothing_reaches_the_broker_before_the_commit[mixed group-redis]",),
    ),
]
