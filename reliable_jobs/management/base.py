"""What the management commands share: which databases and jobs they are about, and reading many rows in pieces."""

from __future__ import annotations

import argparse
import collections
import getpass
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from celery import Celery
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import Error as DatabaseError
from django.db.models import DateTimeField, Q, Subquery, Value
from django.db.models.functions import Coalesce

from reliable_jobs import databases
from reliable_jobs.checks.loading import load_tasks
from reliable_jobs.clock import Now
from reliable_jobs.compat.celery import configured_app
from reliable_jobs.lifecycle import Report
from reliable_jobs.models import Job, JobQuerySet
from reliable_jobs.status import Reason

#: Rows read, or changed in one transaction, at a time.
CHUNK = 1000


def seconds(text: str) -> float:
    """The type of an option that is a length of time."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError("must be a number of seconds above 0")
    return value


def in_chunks(rows: JobQuerySet, size: int = CHUNK) -> Iterator[list[Job]]:
    """The rows in pieces, oldest first, each piece a query of its own that starts where the last one ended: neither a
    long transaction nor a server-side cursor, which a pooler in transaction mode would lose. Rows that are changed
    meanwhile may be seen or not, but none twice."""
    ordered = rows.order_by("created_at", "pk")
    chunk = list(ordered[:size])
    while chunk:
        yield chunk
        last = chunk[-1]
        # As the database has it: SQLite stores its own clock with fewer digits than Django writes, and compares text.
        stored = Job.objects.using(rows.db).filter(pk=last.pk).values("created_at")
        at = Coalesce(Subquery(stored), Value(last.created_at, output_field=DateTimeField()))
        # The first condition repeats a part of the second for the index's sake.
        chunk = list(ordered.filter(created_at__gte=at).filter(Q(created_at__gt=at) | Q(pk__gt=last.pk))[:size])


class JobCommand(BaseCommand):
    """A command on the jobs of every database that has the table, or of one."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        #: The databases that failed, and how.
        self.unreachable: dict[str, str] = {}

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--database", choices=databases.candidates(), help="Only this database; by default every one with jobs."
        )

    def databases(self, options: dict[str, Any]) -> list[str]:
        return [options["database"]] if options["database"] else databases.aliases()

    def on_each(self, aliases: Iterable[str], work: Callable[[str], None]) -> None:
        """Do something with each of the databases. One that fails keeps no other from its turn; :meth:`complain` names
        it."""
        for alias in aliases:
            try:
                work(alias)
            except DatabaseError as error:
                self.unreachable[alias] = f"{type(error).__name__}: {error}".strip()

    def complain(self) -> None:
        """End the command where a database failed.

        Raises:
            CommandError: naming each of them.
        """
        if self.unreachable:
            raise CommandError(
                "\n".join(f"Database {alias!r} failed: {why}" for alias, why in self.unreachable.items())
            )

    def ask(self, question: str) -> None:
        try:
            answer = input(question)
        except EOFError:
            raise CommandError("Nobody is there to ask; add --yes.") from None
        if answer.strip().lower() not in ("y", "yes"):
            raise CommandError("Nothing was done.")

    def celery_app(self, *, with_tasks: bool = False) -> Celery:
        """The project's app.

        Raises:
            CommandError: there is none, or its task modules can't be imported.
        """
        app = configured_app()
        if app is None:
            raise CommandError(
                "No Celery app is loaded. Create it in celery.py next to the settings and import it in that package's "
                "__init__.py."
            )
        if with_tasks:
            try:
                load_tasks(app)
            except Exception as error:
                raise CommandError(f"The task modules can't be imported: {type(error).__name__}: {error}") from error
        return app


class ActionCommand(JobCommand):
    """Does something to jobs: to those with the ids given, or, after a question, to all that options select."""

    #: For people: "requeue".
    verb: str
    #: Statuses that ``--status`` may name; the first is the one it has when it is left out.
    statuses: tuple[str, ...]

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("ids", nargs="*", type=uuid.UUID, metavar="id", help=f"Jobs to {self.verb}.")
        parser.add_argument("--task", action="append", help="Jobs of this task; may be given several times.")
        parser.add_argument("--queue", action="append", help="Jobs of this queue; may be given several times.")
        parser.add_argument("--reason", choices=[str(reason) for reason in Reason if reason], help="e.g. parked.")
        parser.add_argument(
            "--status",
            action="append",
            choices=self.statuses,
            help=f"Jobs with this status; {self.statuses[0]} when omitted. May be given several times.",
        )
        parser.add_argument("--all", action="store_true", help="Every job with that status, of all tasks and queues.")
        parser.add_argument("--dry-run", action="store_true", help="Only say how many jobs it would be.")
        parser.add_argument("--yes", "--no-input", "--noinput", action="store_true", help="Do not ask.")

    def act(self, ids: list[uuid.UUID], alias: str, options: dict[str, Any]) -> Report:
        raise NotImplementedError

    def handle(self, *args: Any, **options: Any) -> None:
        if bool(options["ids"]) == self.selects(options):
            raise CommandError(f"Say which jobs to {self.verb}: ids, or --task, --queue, --reason, --status or --all.")
        if options["ids"]:
            self._by_id(options)
        else:
            self._by_selection(options)

    @staticmethod
    def selects(options: dict[str, Any]) -> bool:
        """Whether jobs are selected by what they have in common."""
        return any(options[name] for name in ("task", "queue", "reason", "status", "all"))

    def _by_id(self, options: dict[str, Any]) -> None:
        wanted: list[uuid.UUID] = options["ids"]
        total = Report()

        def one(alias: str) -> None:
            nonlocal wanted
            here = list(Job.objects.using(alias).filter(pk__in=wanted).values_list("pk", flat=True))
            if here and not options["dry_run"]:
                total.add(self.act(here, alias, options))
            wanted = [pk for pk in wanted if pk not in here]

        self.on_each(self.databases(options), one)
        if options["dry_run"]:
            self.stdout.write(f"Would {self.verb} {len(options['ids']) - len(wanted)} job(s).")
            self.complain()
            return
        total.skipped.update(dict.fromkeys(wanted, "no such job"))
        self.say(total)
        self.complain()
        if total.skipped:
            raise CommandError(f"{len(total.skipped)} of {len(options['ids'])} job(s) were skipped.")

    def _by_selection(self, options: dict[str, Any]) -> None:
        statuses = options["status"] or [self.statuses[0]]
        chosen: dict[str, JobQuerySet] = {}
        count = 0

        def choose(alias: str) -> None:
            nonlocal count
            rows = self._selected(alias, statuses, options)
            count += rows.count()
            chosen[alias] = rows

        self.on_each(self.databases(options), choose)
        if options["dry_run"] or not count:
            self.stdout.write(f"Would {self.verb} {count} job(s)." if count else "No such jobs.")
            self.complain()
            return
        if not options["yes"]:
            self.ask(f"{self.verb.capitalize()} {count} {' or '.join(statuses)} job(s)? [y/N] ")
        total = Report()

        def act(alias: str) -> None:
            for chunk in in_chunks(chosen[alias].only("created_at")):
                total.add(self.act([job.pk for job in chunk], alias, options))

        self.on_each(chosen, act)
        self.say(total)
        self.complain()

    def _selected(self, alias: str, statuses: list[str], options: dict[str, Any]) -> JobQuerySet:
        rows = Job.objects.using(alias).filter(status__in=statuses)
        # Not those that come in while it works: nobody was asked about them.
        now = rows.annotate(now=Now()).values_list("now", flat=True).first()
        rows = rows.filter(created_at__lte=now) if now is not None else rows.none()
        for name in ("task", "queue"):
            if options[name]:
                rows = rows.filter(**{f"{name}__in": options[name]})
        if options["reason"]:
            rows = rows.filter(reason=options["reason"])
        return rows

    def say(self, report: Report) -> None:
        self.stdout.write(f"{self.verb.capitalize()}: {len(report.done)} job(s) done.")
        for why, count in collections.Counter(report.skipped.values()).most_common():
            self.stdout.write(f"Skipped {count}: {why}.")


def actor() -> str:
    """Who runs the command, for the jobs' history."""
    who: Callable[[], str] = getpass.getuser
    try:
        return f"{who()} (manage.py)"
    except (KeyError, OSError):  # a container's user without a name
        return "manage.py"
