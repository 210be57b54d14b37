"""How many jobs of a task fit into one message, by how long its runs have taken of late: see sweep/statistics.py."""

from __future__ import annotations

import datetime
import logging
import time

from django.db import Error as DatabaseError
from django.db.models import Sum

from reliable_jobs.clock import Now
from reliable_jobs.models import Stat
from reliable_jobs.models.statistics import BUCKETS, HOUR
from reliable_jobs.status import Ending

logger = logging.getLogger(__name__)

#: Milliseconds that the jobs of one message may take together.
TOGETHER = 100
#: Seconds for which an answer of a database is kept.
KEPT = 60.0
#: What counts as "of late".
LATELY = datetime.timedelta(hours=3)
#: Runs that say something.
ENOUGH = 20

#: By database: until when it is kept (monotonic), and the answers by task.
_known: dict[str, tuple[float, dict[str, int]]] = {}


def fitting(task: str, using: str) -> int:
    """How many runs of a task take less than TOGETHER milliseconds, by their median; 1 where too few are known."""
    until, found = _known.get(using, (0.0, {}))
    if time.monotonic() >= until:
        # Noted first: other threads, and those whose look fails, go on with what was known.
        _known[using] = (time.monotonic() + KEPT, found)
        try:
            found = _look(using)
        except DatabaseError as error:
            logger.info("The run times could not be read from %r (%s); jobs travel alone.", using, error)
            found = {}
        _known[using] = (time.monotonic() + KEPT, found)
    return found.get(task, 1)


def forget() -> None:
    """Ask the databases again."""
    _known.clear()


def _look(using: str) -> dict[str, int]:
    counts = [f"r{bucket}" for bucket in range(BUCKETS)]
    stats = Stat.objects.using(using).filter(span=HOUR, at__gt=Now() - LATELY, ending=Ending.SUCCEEDED)
    sums = stats.order_by().values_list("task").annotate(*[Sum(count) for count in counts])
    found = {task: _median_at_most(numbers) for task, *numbers in sums}
    return {task: max(1, TOGETHER // longest) for task, longest in found.items() if longest}


def _median_at_most(numbers: list[int]) -> int:
    """The upper end of the median's bucket in milliseconds; 0 where there are too few runs."""
    runs, seen = sum(numbers), 0
    for bucket, number in enumerate(numbers):
        seen += number
        if runs >= ENOUGH and 2 * seen >= runs:
            return int(2**bucket)
    return 0
