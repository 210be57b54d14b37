"""What one site is, and how it differs from the base site."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

ENTRY = """\
    '$alias': {
        'ENGINE': 'django.db.backends.postgresql',
        'NAME': '$database',
        'USER': '$user',
        'PASSWORD': '$password',
        'HOST': '$host',
        'PORT': '$port',
$lines    },
"""
AMQP = "CELERY_BROKER_URL = '$broker'\n"


def entry(alias: str, *lines: str, database: str = "$name") -> str:
    """An entry of DATABASES as people write it, with further lines in it."""
    text = "".join(f"        {line}\n" for line in lines)
    return ENTRY.replace("$alias", alias).replace("$database", database).replace("$lines", text)


def databases(*entries: str, before: str = "") -> str:
    return f"{before}\nDATABASES = {{\n{''.join(entries)}}}\n"


def postgresql(*lines: str, before: str = "") -> str:
    """The dict of the base site with further lines in it, and text before it."""
    return databases(entry("default", *lines), before=before)


POSTGRESQL = postgresql()


@dataclasses.dataclass(frozen=True)
class Observed:
    """What is expected of a tracing library on a site."""

    traces: bool = True
    """Whether it can say in which trace it is."""
    bundles: bool = True
    """Whether the jobs of a bundle are in the traces of their requests, too."""
    errors: bool = True
    """Whether its errors can be recorded."""
    joins: bool = True
    """Whether the statements of a run still travel together."""


@dataclasses.dataclass(frozen=True)
class Site:
    """The defaults are the base site. Texts are parts of its settings.py, where $name, $port … stand for its servers'.

    `faults` are names of the broker's methods, or "kill" for one worker child. `named` is the check that must name the
    combination. `refused` is the check that says, as an error or as a warning, that it is not supported, or words of
    the worker that refuses to start.
    """

    name: str
    varies: str
    kind: str = "versions"

    python: str = "3.13"
    requirements: tuple[str, ...] = ("django>=6.0,<6.1", "celery>=5.7,<5.8", "psycopg[binary]>=3.2")
    extras: tuple[str, ...] = ("beat", "results")

    database: str = "postgresql"
    """The server, one of `servers.DATABASES`."""
    databases: str = POSTGRESQL
    alias: str = "default"
    """The database that holds the orders and their jobs."""
    schema: str = ""
    """What stands before the names of the project's tables in the verdict's SQL, with its dot."""
    prepare: tuple[str, ...] = ()
    """SQL that is run in the new database before migrate, by PostgreSQL's superuser."""

    broker: str = "rabbitmq"
    """The server, one of `servers.BROKERS`."""
    brokers: str = AMQP
    pool: str = "prefork"
    concurrency: int = 2
    worker: tuple[str, ...] = ()
    """Further arguments of the worker's command line."""
    relay: bool = False
    launcher: tuple[str, ...] = ()
    """What stands before the command of each process."""
    variables: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Environment variables of each process."""
    compiled: bool = False
    """Whether the packages are deployed without their sources, as .pyc files."""
    template: str = ""
    """A folder beside `template` that is copied over it."""
    observed: Observed | None = None
    settings: str = ""
    files: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Further files, and replacements, by path inside the project."""
    replaced: tuple[tuple[str, str, str], ...] = ()
    """(path, old, new) in files of the template."""
    migrate: tuple[tuple[str, ...], ...] = (("migrate", "-v", "0"),)

    work_seconds: float = 0.3
    faults: tuple[str, ...] = ("kill", "delete_queue")
    orders: int = 100
    pause: float = 0.05
    seconds: float = 450.0
    """Deadline for all work to end, from the first order on."""
    budget: float = 3.0
    """Longest time that a request may take."""
    counted: bool = True
    """Whether its database connections are counted: a pool's own bounds hold for each process, busy or not."""
    named: str | None = None
    refused: str | None = None

    @property
    def most_connections(self) -> int:
        """What docs/sites.md allows a worker: two connections for each run, and one for the sweeper beside it."""
        return 2 * self.concurrency + 1
