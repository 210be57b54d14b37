from __future__ import annotations

from typing import Any

from django.core.management.base import CommandError, CommandParser

from reliable_jobs.management.base import JobCommand, actor, add_choice
from reliable_jobs.management.options import age
from reliable_jobs.status import Status
from reliable_jobs.sweep import purge


class Command(JobCommand):
    help = (
        "Drop jobs, by queue, task, age and status, after saying how many: those that wait are cancelled, settled ones "
        "deleted with their history; running ones stay. 'celery purge' and app.control.purge() empty the broker's "
        "queues only: what waits is in the database, and the sweeper publishes it again."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        add_choice(parser, purge.STATUSES)
        parser.add_argument(
            "--older-than",
            type=age,
            metavar="AGE",
            help="Jobs that were enqueued (waiting) or have ended (settled) so long ago: 90s, 15m, 2h, 7d.",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        if not any(options[name] for name in ("task", "queue", "all")) and options["older_than"] is None:
            raise CommandError("Say which jobs to purge: --task, --queue, --older-than or --all.")
        counts: dict[purge.Choice, int] = {}

        def choose(alias: str) -> None:
            for status in options["status"] or [Status.WAITING]:
                choice = purge.Choice(
                    alias,
                    queues=tuple(options["queue"] or ()),
                    tasks=tuple(options["task"] or ()),
                    age=options["older_than"],
                    status=status,
                )
                counts[choice] = choice.rows.count()

        self.on_each(self.databases(options), choose)
        for choice, count in counts.items():
            if count:
                verb = "cancelled" if choice.status == Status.WAITING else "deleted"
                self.stdout.write(f"{count} {choice.status} job(s) of database {choice.using!r} would be {verb}.")
        if options["dry_run"] or not any(counts.values()):
            if not any(counts.values()):
                self.stdout.write("No such jobs.")
            self.complain()
            return
        if not options["yes"]:
            self.ask(f"Purge {sum(counts.values())} job(s)? [y/N] ")
        done = 0

        def act(alias: str) -> None:
            nonlocal done
            for choice, count in counts.items():
                if choice.using == alias and count:
                    done += purge.purge(choice, actor=actor())

        self.on_each(dict.fromkeys(choice.using for choice in counts), act)
        self.stdout.write(f"Purge: {done} job(s) done.")
        self.complain()
