"""The only writer of a job's status.

Enters: what a run, a person, a sweeper or a worker wants of a row. Leaves: whether it won, and an event where one will
be asked for. Never here: a wait for a run, or a time of this machine's clock. A run's transitions are conditional
UPDATEs, fenced by (id, epoch) or (id, token). Requeue and cancel lock their rows and update them by id. The epoch rises
with each transition, and rows that a run may hold are skipped. Read transition.py first. ``claims`` take a job for a
run, ``settle`` records how the run ended, ``operations`` are what comes from outside a run: requeue and cancel. By
``dead_runs`` the sweeper takes a dead worker's job back. db_errors.py says which error is the database's fault.
"""

from reliable_jobs.lifecycle.announce import of_lost_answer
from reliable_jobs.lifecycle.claims import (
    claim_atomic,
    claim_committed,
    claim_many,
    claim_to_report,
    extend_lease,
    lock_by_token,
    step_back,
)
from reliable_jobs.lifecycle.dead_runs import last_death, rescue
from reliable_jobs.lifecycle.held_places import hold_place, take_over
from reliable_jobs.lifecycle.later_steps import end_steps
from reliable_jobs.lifecycle.listeners import listen
from reliable_jobs.lifecycle.operations import Report, cancel, hand_back, requeue
from reliable_jobs.lifecycle.pauses import bring_back, pause, paused, put_back, put_off, resume
from reliable_jobs.lifecycle.receipts import park, take_receipt
from reliable_jobs.lifecycle.relayed import fail_unsendable, mark_sent, take_in
from reliable_jobs.lifecycle.settle import cancel_run, expire, fail, keep_place, run_again, succeed, succeed_many
from reliable_jobs.lifecycle.transition import (
    Claim,
    Refusal,
    Subject,
    event,
    record,
    succeeded_by,
)

__all__ = [
    "Claim",
    "Refusal",
    "Report",
    "Subject",
    "bring_back",
    "cancel",
    "cancel_run",
    "claim_atomic",
    "claim_committed",
    "claim_many",
    "claim_to_report",
    "end_steps",
    "event",
    "expire",
    "extend_lease",
    "fail",
    "fail_unsendable",
    "hand_back",
    "hold_place",
    "keep_place",
    "last_death",
    "listen",
    "lock_by_token",
    "mark_sent",
    "of_lost_answer",
    "park",
    "pause",
    "paused",
    "put_back",
    "put_off",
    "record",
    "requeue",
    "rescue",
    "resume",
    "run_again",
    "step_back",
    "succeed",
    "succeed_many",
    "succeeded_by",
    "take_in",
    "take_over",
    "take_receipt",
]
