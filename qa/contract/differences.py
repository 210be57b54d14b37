"""What differs on purpose from plain Celery, each with its reason. Few, and none of them a lost step."""

from __future__ import annotations

_ONE_JOB = "it calls a frozen signature in two workflows: a task id is one job, so the second one fails, and says why"
_PROTOCOL = "task_protocol = 1 is refused: its messages have no headers, which point to the row"
_HELD = "a message is acknowledged once its job is settled, and has no priority unless one was asked for"

#: By test, as ``python -m qa.contract`` names it, without its parameters.
DIFFERENCES: dict[str, str] = {
    "test_canvas.test_chord.test_generator": (
        "the calls of a group are written in one transaction, all or none: no part runs before the last one is made"
    ),
    "test_canvas.test_chord.test_reapplying_frozen_chord_dispatches_body_again": _ONE_JOB,
    "test_canvas.test_chord.test_mutable_errback_called_by_chord_from_chain": _ONE_JOB,
    "test_canvas.test_chord.test_mutable_errback_called_by_chord_from_chain_tail": _ONE_JOB,
    "test_canvas.test_chord.test_mutable_errback_called_by_chord_from_group_fail_multiple_on_body_failure": _ONE_JOB,
    "test_canvas.test_chord.test_nested_chord_header_link_error": (
        "Celery links the errback to the inner body and to the outer one; there the outer chord never ends, here it "
        "fails, too, and its errback is called"
    ),
    "test_canvas.test_chord.test_chain_to_a_chord_with_large_header": (
        "a call with 1,000 tasks in what follows it has 250 kB: RELIABLE_JOBS['MAX_PAYLOAD_BYTES'] is to be raised"
    ),
    "test_group_chains.test_group_chains.test_group_results_reach_the_next_group": _PROTOCOL,
    "test_group_chains.test_group_chains.test_pending_chord_keeps_header_errback": _PROTOCOL,
    "test_canvas.test_chain.test_chord_header_id_duplicated_on_rabbitmq_msg_duplication": (
        "the copy of a message starts nothing: the chain runs once, and the test waits for the second time"
    ),
    "test_canvas.test_chord.test_chord_error_propagation_with_different_body_types": (
        "the body fails in the transaction in which its chord does, so get() raises its ChordError, which names the "
        "part. Celery's get() may come before it, and raises the part's own exception"
    ),
    "test_canvas.test_chord.test_chord_on_error": (
        "a body that never ran has no children; what its failure has started has rows, with the body's id in errback_of"
    ),
    "test_inspect.test_Inspect.test_active": _HELD,
    "test_inspect.test_Inspect.test_query_task": _HELD,
    "test_inspect.test_Inspect.test_scheduled": "a delay is spent in the row: no worker holds the message",
    "test_tasks.test_task_redis_result_backend.test_asyncresult_forget_cancels_subscription": (
        "a result is read from the row: nobody subscribes to a channel of Redis at the call"
    ),
}


def reason(test: str) -> str | None:
    """Why a test, named with its parameters, fails with reliable tasks; None if it should not."""
    return DIFFERENCES.get(test.partition("[")[0])
