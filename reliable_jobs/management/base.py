"""What the management commands share: which databases and jobs they are about, and reading many rows in pieces."""

from __future__ import annotations

import collections
import getpass
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
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
from reliable_jobs.management.options import above_zero, moment, seconds
from reliable_jobs.models import Job, JobQuerySet
from reliable_jobs.status import FINAL, Reason

#: Rows read, or changed in one transaction, at a time.
CHUNK = 1000


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


def add_choice(parser: CommandParser, statuses: Sequence[str]) -> None:
    """The options by which a command that changes jobs is told which ones, and whether it is to ask first.

    Args:
        statuses: that ``--status`` may name; the first is the one it has when it is left out.
    """
    parser.add_argument("--task", action="append", help="Jobs of this task; may be given several times.")
    parser.add_argument("--queue", action="append", help="Jobs of this queue; may be given several times.")
    parser.add_argument(
        "--status",
        action="append",
        choices=statuses,
        help=f"Jobs with this status; {statuses[0]} when omitted. May be given several times.",
    )
    parser.add_argument("--all", action="store_true", help="Every job with that status, of all tasks and queues.")
    parser.add_argument("--dry-run", action="store_true", help="Only say how many jobs it would be.")
    parser.add_argument("--yes", "--no-input", "--noinput", action="store_true", help="Do not ask.")


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


#: Options that select jobs by what they have in common.
SELECTING = ("task", "queue", "reason", "status", "since", "until", "error", "release", "all")


class ActionCommand(JobCommand):
    """Does something to jobs: to those with the ids given, or, after a question, to all that options select."""

    #: For people: "requeue".
    verb: str
    #: Statuses that ``--status`` may name; the first is the one it has when it is left out.
    statuses: tuple[str, ...]

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("ids", nargs="*", type=uuid.UUID, metavar="id", help=f"Jobs to {self.verb}.")
        add_choice(parser, self.statuses)
        parser.add_argument("--reason", choices=[str(reason) for reason in Reason if reason], help="e.g. parked.")
        of_final = "Of ended jobs the time when they ended counts, of others when they were enqueued."
        parser.add_argument("--since", type=moment, help=f"'2026-01-31 02:00', 02:00, or an age such as 2h. {of_final}")
        parser.add_argument("--until", type=moment, help="As --since; jobs of that very moment are left out.")
        parser.add_argument("--error", help="Jobs whose last attempt failed with this class of exception.")
        parser.add_argument("--release", help="Jobs that a worker of this release has run last.")
        parser.add_argument("--limit", type=above_zero, help="So many jobs at most, the oldest first.")
        parser.add_argument("--rate", type=seconds, help="So many jobs in a second at most.")

    def act(self, ids: list[uuid.UUID], alias: str, options: dict[str, Any]) -> Report:
        raise NotImplementedError

    def handle(self, *args: Any, **options: Any) -> None:
        if bool(options["ids"]) == self.selects(options):
            raise CommandError(
                f"Say which jobs to {self.verb}: ids, or {', '.join(f'--{name}' for name in SELECTING)}."
            )
        if options["ids"]:
            self._by_id(options)
        else:
            self._by_selection(options)

    @staticmethod
    def selects(options: dict[str, Any]) -> bool:
        """Whether jobs are selected by what they have in common."""
        return any(options[name] for name in SELECTING)

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
        limit = options["limit"]
        count = min(count, limit) if limit else count
        if options["dry_run"] or not count:
            self.stdout.write(f"Would {self.verb} {count} job(s)." if count else "No such jobs.")
            self.complain()
            return
        if not options["yes"]:
            self.ask(f"{self.verb.capitalize()} {count} {' or '.join(statuses)} job(s)? [y/N] ")
        total = Report()
        left, rate, began = count, options["rate"], time.monotonic()
        size = CHUNK if rate is None else max(1, min(CHUNK, int(rate)))

        def act(alias: str) -> None:
            nonlocal left
            for chunk in in_chunks(chosen[alias].only("created_at"), size):
                ids = [job.pk for job in chunk[:left]]
                if not ids:
                    return
                total.add(self.act(ids, alias, options))
                left -= len(ids)
                if rate is not None and left:
                    time.sleep(max(0.0, began + (count - left) / rate - time.monotonic()))

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
        exact = {"reason": options["reason"], "error_class": options["error"], "release": options["release"]}
        rows = rows.filter(**{column: value for column, value in exact.items() if value})
        ended, others = [s for s in statuses if s in FINAL], [s for s in statuses if s not in FINAL]
        for at, lookup in ((options["since"], "gte"), (options["until"], "lt")):
            if at is not None:
                by_end = Q(status__in=ended, **{f"finished_at__{lookup}": at})
                rows = rows.filter(by_end | Q(status__in=others, **{f"created_at__{lookup}": at}))
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
