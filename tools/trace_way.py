"""Prints how far a reader has to walk: files, changes of file and calls on the four ways of a job.

    DATABASE_URL=… BROKER_URL=amqp://… .venv/bin/python tools/trace_way.py [--list]

The ways are ``delay()`` with its commit and the broker's confirm, a first run of an atomic task, a run with a committed
claim, and a sweep of one row. Each is walked twice and the second walk is counted, so that what is done once per
process is left out. Calls are those of functions of this package; a change of file is a call into another file than the
call before it, in this thread.
"""

from __future__ import annotations

import argparse
import os
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = str(ROOT / "reliable_jobs") + os.sep


class Walk:
    """Files of the package in the order in which their functions are called."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []

    def _note(self, frame: Any, event: str, arg: Any) -> None:
        name = frame.f_code.co_filename
        if event == "call" and name.startswith(PACKAGE):
            self.calls.append((name.removeprefix(PACKAGE), frame.f_code.co_name))

    def through(self, work: Callable[[], Any]) -> Walk:
        sys.setprofile(self._note)
        try:
            work()
        finally:
            sys.setprofile(None)
        return self

    @property
    def files(self) -> int:
        return len({file for file, _ in self.calls})

    @property
    def changes(self) -> int:
        return sum(one[0] != two[0] for one, two in zip(self.calls, self.calls[1:], strict=False))


def ways(queue: str) -> dict[str, Walk]:
    """Walk each of them, in a database and on a queue of one's own."""
    from django.utils import timezone

    from reliable_jobs.models import Job
    from tests.support.inprocess import InProcess
    from tests.testapp.tasks import effect

    worker = InProcess(queue)

    def run(redelivered: bool) -> Walk:
        effect.delay("way")
        (message,) = worker.take()
        return Walk().through(lambda: worker.deliver(message, redelivered=redelivered))

    def sweep() -> Walk:
        result = effect.delay("way")
        worker.take()
        Job.objects.filter(pk=result.id).update(sends=0, check_at=None, due_at=timezone.now())
        walk = Walk().through(worker.sweep)
        worker.work()
        return walk

    walks = {
        "delay(), commit, confirm": lambda: Walk().through(lambda: effect.delay("way")),
        "first run": lambda: run(redelivered=False),
        "run with a committed claim": lambda: run(redelivered=True),
        "sweep of one row": sweep,
    }
    for walk in walks.values():
        walk()
        worker.work()
    found = {}
    for name, walk in walks.items():
        found[name] = walk()
        worker.work()
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="print every call, in order")
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")

    import django
    from django.test.utils import setup_databases, teardown_databases

    django.setup()
    from tests.support.inprocess import broker

    created = setup_databases(verbosity=0, interactive=False, aliases=["default"])
    try:
        with broker(os.environ.get("BROKER_URL", "memory://"), f"way_{uuid.uuid4().hex[:8]}") as queue:
            found = ways(queue)
            from tests.celery_app import app

            with app.connection_for_write() as connection:
                connection.default_channel.queue_delete(queue)
    finally:
        teardown_databases(created, verbosity=0)
    print(f"{'way':28} {'files':>6} {'changes of file':>16} {'calls':>6}")
    for name, walk in found.items():
        print(f"{name:28} {walk.files:6} {walk.changes:16} {len(walk.calls):6}")
        if options.list:
            for file, function in walk.calls:
                print(f"    {file:34} {function}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
