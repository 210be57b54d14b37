from __future__ import annotations

import signal
from typing import Any

from django.core.management.base import CommandError, CommandParser

from reliable_jobs.conf import settings
from reliable_jobs.management.base import JobCommand
from reliable_jobs.management.options import seconds
from reliable_jobs.sweep.relay import Relay


class Command(JobCommand):
    help = (
        "Publish due jobs as they come, and sweep and prune, until SIGTERM or SIGINT. With RELIABLE_JOBS = "
        "{'DISPATCH': 'relay'} requests leave the broker alone and relays do all the publishing. Any number may run."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--interval",
            type=seconds,
            default=1.0,
            help="Seconds between two looks when nothing was due (default: %(default)s).",
        )
        parser.add_argument("--drain", action="store_true", help="End when nothing is due any more.")

    def handle(self, *args: Any, **options: Any) -> None:
        relay = Relay(self.celery_app(with_tasks=True), interval=options["interval"])

        def stop(number: int, frame: Any) -> None:
            relay.stop()

        before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            if options["drain"]:
                if not relay.drain():
                    raise CommandError(
                        f"Not all due jobs could be published; {relay.published} were. The broker is away or did not "
                        "take them, the relay was stopped, or the log has an error."
                    )
            else:
                where = "the requests publish too" if settings.DISPATCH == "on_commit" else "nobody else publishes"
                self.stdout.write(f"Relay is ready (DISPATCH is {settings.DISPATCH!r}: {where}).")
                self.stdout.flush()
                relay.run()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        self.stdout.write(f"Published {relay.published} job(s).")
