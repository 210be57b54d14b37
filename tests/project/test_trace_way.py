"""A reader's way through the code does not grow unnoticed. `python tools/trace_way.py --list` prints it."""

from __future__ import annotations

from tests.support import inprocess
from tests.support.inprocess import InProcess
from tools.trace_way import ways

jobs = inprocess.jobs
#: Changes of file, with room for one more stop. A way that has to be longer than that is worth the new number here.
MOST = {
    "delay(), commit, confirm": 27,
    # Four and two of them for run/prepared.py: an eighth more jobs a second.
    "first run": 41,
    "run with a committed claim": 42,
    "sweep of one row": 38,
}


def test_no_way_of_a_job_has_become_longer(jobs: InProcess) -> None:
    changes = {name: walk.changes for name, walk in ways(jobs.queue).items()}
    assert changes.keys() == MOST.keys()
    assert {name: count for name, count in changes.items() if count > MOST[name]} == {}
