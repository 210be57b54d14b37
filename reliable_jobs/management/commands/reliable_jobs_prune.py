from __future__ import annotations

import argparse
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import Error as DatabaseError

from reliable_jobs.sweep import pruner


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


class Command(BaseCommand):
    help = "Delete settled jobs that are older than RELIABLE_JOBS['RETENTION'], with their history."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--limit", type=_positive, default=100_000, help="Most jobs to delete per database (default: %(default)s)."
        )

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            self.stdout.write(f"Pruned {pruner.prune(limit=options['limit'])} job(s).")
        except DatabaseError as error:
            raise CommandError(f"A database could not be pruned: {type(error).__name__}: {error}") from error
