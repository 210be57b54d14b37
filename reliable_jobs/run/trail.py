"""How far a delivery has come, from Celery's tracer to the answer."""

from __future__ import annotations

import dataclasses
from typing import Any

#: Where the trail of a delivery stands in its request's delivery_info. (In the request itself Celery would take it for
#: a header, and send it along with a retry.)
TRAIL = "reliable_trail"


@dataclasses.dataclass
class Trail:
    """How far a delivery has come; shared by the tracer's wrapper, the guards and :func:`delivery.deliver`."""

    #: The message came to deliver().
    reached: bool = False
    #: What the row says of this delivery, as value and error for the tracer. None: nothing is written yet.
    answer: tuple[Any, BaseException | None] | None = None
    #: What could not be written.
    error: BaseException | None = None
    #: The run that was claimed before a hook of the project's, until it goes on.
    run: Any = None
    #: What is to follow the job: taken off its request, and written with its settlement.
    following: Any = None
    #: Guards that are entered, one inside the other.
    depth: int = 0


def trail_of(request: Any) -> Trail | None:
    """The trail of the delivery that runs; None for a direct or eager call, and inside a bundle."""
    info = request.delivery_info
    return info.get(TRAIL) if isinstance(info, dict) else None
