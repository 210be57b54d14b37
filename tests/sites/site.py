"""What one site is, and how it differs from the base site."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

POSTGRESQL = """
DATABASES = {
    'default': {
        'ENGINE': 'django.db.backends.postgresql',
        'NAME': '$name',
        'USER': '$user',
        'PASSWORD': '$password',
        'HOST': '$host',
        'PORT': '$port',
    }
}
"""

AMQP = "CELERY_BROKER_URL = '$broker'\n"


def postgresql(*lines: str, before: str = "") -> str:
    """The hand-written dict of the base site with further lines in it, and text before it."""
    return before + POSTGRESQL.replace("    }\n", "".join(f"        {line}\n" for line in lines) + "    }\n")


@dataclasses.dataclass(frozen=True)
class Site:
    """The defaults are the base site. Texts are parts of its settings.py, where $name, $port … stand for its servers'.

    `faults` are names of `servers` methods, or "kill" for one worker child. `named` is the check that must name the
    combination; `refused` the one that must keep the worker from starting. `connections` is how many database
    connections the worker may have at most, as the documentation counts them.
    """

    name: str
    varies: str
    kind: str = "versions"

    python: str = "3.13"
    requirements: tuple[str, ...] = ("django>=6.0,<6.1", "celery>=5.7,<5.8", "psycopg[binary]>=3.2")
    extras: tuple[str, ...] = ("beat", "results")

    database: str = "postgresql"
    """The server: postgresql, pgbouncer, mariadb or sqlite."""
    databases: str = POSTGRESQL
    prepare: tuple[str, ...] = ()
    """SQL that is run in the new database before migrate, by PostgreSQL's superuser."""

    broker: str = "rabbitmq"
    """The server: rabbitmq, rabbitmq-tls, redis, filesystem or memory."""
    brokers: str = AMQP
    pool: str = "prefork"
    concurrency: int = 2
    worker: tuple[str, ...] = ()
    """Further arguments of the worker's command line."""
    relay: bool = False
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
    seconds: float = 150.0
    """Deadline for all work to end, from the first order on."""
    budget: float = 3.0
    """Longest time that a request may take."""
    named: str | None = None
    refused: str | None = None
    connections: int | None = None
