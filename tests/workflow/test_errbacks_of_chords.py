"""Errbacks of chords in the forms in which Celery takes them; found by its own integration tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from celery import VERSION, chord, group

from tests.support import inprocess
from tests.support.inprocess import InProcess
from tests.testapp.tasks import errback_by_id
from tests.workflow.chords import body, fails, no_backend, part

jobs = inprocess.jobs


def told() -> Any:
    return errback_by_id.si("x", name="told")


#: Each with how often its errback is called when the header fails.
SHAPES: dict[str, tuple[Callable[[], Any], int]] = {
    "set as one signature on a body": (lambda: chord([fails.si()], body.s().set(link_error=told())).delay(), 1),
    "set as one signature in a group": (
        lambda: chord([fails.si()], group(body.s().set(link_error=told()), body.s())).delay(),
        1,
    ),
    "an option, the body a group": (
        lambda: chord([fails.si()], group(body.s(), body.s())).apply_async(link_error=told()),
        2,
    ),
    "an option, the body a chord": (
        lambda: chord([fails.si()], chord([body.s(), body.s()], body.s())).apply_async(link_error=told()),
        1,
    ),
    "set as one signature on a part": (lambda: group(part.si(1), fails.si().set(link_error=told())).delay(), 1),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_the_errback_is_called(jobs: InProcess, shape: str) -> None:
    call, times = SHAPES[shape]
    if shape.startswith("an option") and VERSION < (5, 7):
        pytest.skip("up to Celery 5.6 the call is refused: Cannot add link to group")
    with no_backend():
        call()
        jobs.finish()
    assert jobs.effects("told") == times
