"""How far a delivery has come, from Celery's tracer to the answer."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from reliable_jobs.compat.celery_run import put_on

if TYPE_CHECKING:
    from reliable_jobs.workflow.following import Following

#: Where the trail of a delivery stands in its request's delivery_info. (In the request itself Celery would take it for
#: a header, and send it along with a retry.)
TRAIL = "reliable_trail"


@dataclasses.dataclass(repr=False)
class Trail:
    """How far a delivery has come; shared by the tracer's wrapper, the guards and :func:`delivery.deliver`. It shows
    nothing of itself, as it holds the result and what follows: tracers write a delivery_info out as text."""

    #: The message came to deliver().
    reached: bool = False
    #: What the row says of this delivery, as value and error for the tracer. None: nothing is written yet.
    answer: tuple[Any, BaseException | None] | None = None
    #: What could not be written.
    error: BaseException | None = None
    #: The run that was claimed before a hook of the project's, until it goes on.
    run: Any = None
    #: What is to follow the job: taken off its request, and written with its settlement. None: nothing.
    following: Following | None = None
    #: Guards that are entered, one inside the other.
    depth: int = 0

    def show_following(self, request: Any) -> None:
        """From here on the request shows what is to follow, as the project's code and ``replace()`` expect it. Celery's
        tracer must not see it, which would start it, too: take it off with ``request.update(NOTHING_FOLLOWS)``.
        """
        if self.following is not None:
            put_on(request, self.following.as_request_has_it())


def trail_of(request: Any) -> Trail | None:
    """The trail of the delivery that runs; None for a direct or eager call, and inside a bundle."""
    info = request.delivery_info
    return info.get(TRAIL) if isinstance(info, dict) else None
