"""``manage.py demo``: the shop under fire."""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any

from django.conf import settings
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandParser

from demo_project.trial import sabotage
from demo_project.trial.stage import on_stage, run_on_stage

ORDERS = 330


class Command(BaseCommand):
    help = (
        "Places orders while transactions roll back, payments are refused at first, workers are killed in mid-body and "
        "the broker loses messages; then counts what came of it. On SQLite and a broker made of files, or on the "
        "servers named by DATABASE_URL and BROKER_URL."
    )
    requires_system_checks = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--orders", type=int, default=ORDERS, help=f"least number of orders (default {ORDERS})")
        parser.add_argument("--seconds", type=float, default=170.0, help="longest duration in seconds (default 170)")
        parser.add_argument("--json", action="store_true", help="end with one line of JSON")
        parser.add_argument("--keep", action="store_true", help="keep the directory with logs and mails")
        parser.add_argument("--break", dest="broken", choices=sabotage.CHOICES, help="switch one protection off")

    def handle(self, *args: Any, **options: Any) -> None:
        # A script that starts this in the background has it ignored, and then nothing but SIGTERM would end it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if not on_stage():
            arguments = ["demo", "--orders", str(options["orders"]), "--seconds", str(options["seconds"])]
            arguments += [f"--{name}" for name in ("json", "keep") if options[name]]
            variables = {sabotage.VARIABLE: options["broken"]} if options["broken"] else {}
            sys.exit(run_on_stage(arguments, keep=options["keep"], variables=variables))
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        try:
            passed = self.perform(options)
        except KeyboardInterrupt:
            self.stdout.write("Interrupted; all processes have been ended.")
            sys.exit(130)
        sys.exit(0 if passed else 1)

    def perform(self, options: dict[str, Any]) -> bool:
        # Imported here: the process that only sets the stage never touches the shop's database.
        from demo_project.trial import report
        from demo_project.trial.run import Run

        began = time.monotonic()
        database = settings.DATABASES["default"]["ENGINE"].rpartition(".")[2]
        broker = settings.CELERY_BROKER_URL.partition(":")[0]
        self.stdout.write(f"Database: {database}, broker: {broker}, logs: {settings.DEMO_DIR}")
        if os.environ.get(sabotage.VARIABLE):
            self.stdout.write(f"Switched off on purpose: {os.environ[sabotage.VARIABLE]}. This run must fail.")
        call_command("migrate", verbosity=0)
        run = Run(options["orders"], began + options["seconds"], report.Progress(self.stdout))
        tally, verdict = run.play()
        complaints = report.complaints(tally, verdict)
        seconds = time.monotonic() - began
        self.stdout.write(report.table(tally, verdict))
        if complaints:
            self.stdout.write("Not passed: " + "\n            ".join(complaints))
        else:
            self.stdout.write(f"Nothing was lost, nothing doubled, nothing invented ({seconds:.0f} s).")
        if options["json"]:
            self.stdout.write(report.json_line(tally, verdict, seconds))
        return not complaints
