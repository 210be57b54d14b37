"""The only writer of a job's status.

Every transition is one conditional UPDATE, fenced by (id, epoch) or (id, token), that answers whether it won; the epoch
rises with each. Rows that a run may hold are taken with SKIP LOCKED, so nobody waits for a body. All times are the
database's. ``claims`` take a job for a run, ``settle`` records how the run ended, ``operations`` are what people, the
sweeper and workers without the code do from outside.
"""

from reliable_jobs.lifecycle.claims import (
    claim_atomic,
    claim_committed,
    claim_many,
    claim_to_report,
    extend_lease,
    hold_by_token,
    step_back,
)
from reliable_jobs.lifecycle.operations import (
    Report,
    cancel,
    hand_back,
    last_death,
    park,
    requeue,
    requeue_ages,
    rescue,
)
from reliable_jobs.lifecycle.settle import expire, fail, run_again, succeed, succeed_many
from reliable_jobs.lifecycle.transition import (
    Claim,
    Refusal,
    clean,
    find,
    interruptions_since,
    record,
    seconds,
    succeeded_by,
    waiting_of,
)

__all__ = [
    "Claim",
    "Refusal",
    "Report",
    "cancel",
    "claim_atomic",
    "claim_committed",
    "claim_many",
    "claim_to_report",
    "clean",
    "expire",
    "extend_lease",
    "fail",
    "find",
    "hand_back",
    "hold_by_token",
    "interruptions_since",
    "last_death",
    "park",
    "record",
    "requeue",
    "requeue_ages",
    "rescue",
    "run_again",
    "seconds",
    "step_back",
    "succeed",
    "succeed_many",
    "succeeded_by",
    "waiting_of",
]
