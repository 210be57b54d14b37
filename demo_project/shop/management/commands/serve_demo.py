"""``manage.py serve_demo``: the shop, a worker, beat and the admin, on a bad night, to look at."""

from __future__ import annotations

import signal
import socket
import sys
import time
from typing import Any

from django.conf import settings
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError, CommandParser

from demo_project.trial.stage import on_stage, run_on_stage

HOST = "127.0.0.1"
#: For a database that goes away with this command, on a site that only this machine reaches.
USER, PASSWORD = "demo", "demo"


class Command(BaseCommand):
    help = "Runs the shop with worker, beat and admin on this machine until Ctrl-C. Nothing of it stays."
    requires_system_checks = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--port", type=int, default=8000, help="the next free one from here on (default 8000)")

    def handle(self, *args: Any, **options: Any) -> None:
        # A script that starts this in the background has it ignored, and then nothing but SIGTERM would end it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if not on_stage():
            sys.exit(run_on_stage(["serve_demo", "--port", str(options["port"])]))
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        self.serve(free_port(options["port"]))

    def serve(self, port: int) -> None:
        from django.contrib.auth import get_user_model

        from demo_project.trial import brokers, customers, night
        from demo_project.trial.processes import Fleet

        call_command("migrate", verbosity=0)
        get_user_model().objects.create_superuser(USER, "demo@example.com", PASSWORD)
        brokers.broker().close()
        try:
            with Fleet() as fleet:
                fleet.start_worker()
                fleet.start_beat()
                site = fleet.start_site(f"{HOST}:{port}")
                shoppers = customers.Customers()
                for _ in range(12):
                    shoppers.order()
                while not answers(port):
                    if not site.alive:
                        raise CommandError(f"The site did not start:\n{site.last_words()}")
                    time.sleep(0.1)
                night.begin(fleet)
                self.stdout.write(f"Shop:   http://{HOST}:{port}/")
                self.stdout.write(f"Admin:  http://{HOST}:{port}/admin/  (user {USER}, password {PASSWORD})")
                self.stdout.write(f"Logs, mails and the payment provider's log: {settings.DEMO_DIR}")
                self.stdout.write("Ctrl-C ends it all.")
                self.stdout.flush()
                while not fleet.dead():
                    time.sleep(0.5)
                ended = fleet.dead()[0]
                raise CommandError(f"{ended.name} ended by itself:\n{ended.last_words()}")
        except KeyboardInterrupt:
            self.stdout.write("\nEnded.")


def free_port(first: int) -> int:
    for port in range(first, first + 100):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return port
    raise CommandError(f"No port is free from {first} to {first + 99}; name another one with --port.")


def answers(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex((HOST, port)) == 0
