"""What differs on purpose from plain Celery, each with its reason. At most ten, none of them a lost step."""

from __future__ import annotations

_ONE_JOB = "it calls a frozen signature in two workflows: a task id is one job, so the second one fails, and says why"

#: By test, as ``python -m qa.contract`` names it, without its parameters.
DIFFERENCES: dict[str, str] = {
    "test_canvas.test_chord.test_generator": (
        "the calls of a group are written in one transaction, all or none: no part runs before the last one is made"
    ),
    "test_canvas.test_chord.test_reapplying_frozen_chord_dispatches_body_again": _ONE_JOB,
    "test_canvas.test_chord.test_mutable_errback_called_by_chord_from_chain": _ONE_JOB,
    "test_canvas.test_chord.test_mutable_errback_called_by_chord_from_chain_tail": _ONE_JOB,
    "test_canvas.test_chord.test_mutable_errback_called_by_chord_from_group": _ONE_JOB,
    "test_canvas.test_chord.test_mutable_errback_called_by_chord_from_group_fail_multiple_on_body_failure": _ONE_JOB,
    "test_canvas.test_chord.test_nested_chord_header_link_error": (
        "Celery links the errback to the inner body and to the outer one; there the outer chord never ends, here it "
        "fails, too, and its errback is called"
    ),
    "test_canvas.test_chord.test_chain_to_a_chord_with_large_header": (
        "a call with 1,000 tasks in what follows it has 250 kB: RELIABLE_JOBS['MAX_PAYLOAD_BYTES'] is to be raised"
    ),
    "test_group_chains.test_group_chains.test_pending_chord_keeps_header_errback": (
        "task_protocol = 1 is refused: its messages have no headers, which point to the row"
    ),
}


def reason(test: str) -> str | None:
    """Why a test, named with its parameters, fails with reliable tasks; None if it should not."""
    return DIFFERENCES.get(test.partition("[")[0])
