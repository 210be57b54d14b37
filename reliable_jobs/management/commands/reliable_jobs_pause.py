from __future__ import annotations

from typing import Any

from django.core.management.base import CommandError, CommandParser

from reliable_jobs import lifecycle
from reliable_jobs.management.base import JobCommand, actor
from reliable_jobs.models import PauseKind


class Command(JobCommand):
    help = (
        "Pause queues and tasks: no job of theirs starts until they are resumed; running ones go on, and nothing is "
        "lost. Without an option: list what is paused."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("--queue", action="append", default=[], help="This queue; may be given several times.")
        parser.add_argument("--task", action="append", default=[], help="This task; may be given several times.")
        parser.add_argument("--why", default="", help="For whoever finds it.")
        parser.add_argument("--resume", action="store_true", help="Let them go on.")

    def handle(self, *args: Any, **options: Any) -> None:
        wanted = [(PauseKind.QUEUE, name) for name in options["queue"]]
        wanted += [(PauseKind.TASK, name) for name in options["task"]]
        if options["resume"] and not wanted:
            raise CommandError("Say what to resume: --queue or --task.")
        self.on_each(self.databases(options), lambda alias: self._one(alias, wanted, options))
        self.complain()

    def _one(self, alias: str, wanted: list[tuple[PauseKind, str]], options: dict[str, Any]) -> None:
        if not wanted:
            for pause in lifecycle.paused(alias):
                by = f" by {pause.actor}" if pause.actor else ""
                why = f": {pause.why}" if pause.why else ""
                self.stdout.write(f"{pause.kind} {pause.name}, since {pause.at:%Y-%m-%d %H:%M:%S}{by}{why}")
            return
        for kind, name in wanted:
            if not options["resume"]:
                lifecycle.pause(kind, name, alias, actor=actor(), why=options["why"])
                self.stdout.write(f"Paused {kind} {name}.")
            elif lifecycle.resume(kind, name, alias):
                self.stdout.write(f"Resumed {kind} {name}.")
            else:
                self.stdout.write(f"{str(kind).capitalize()} {name} was not paused.")
