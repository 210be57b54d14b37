"""A place of its own for every run: a directory, and on servers a database and a queue. All of it goes away again."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from urllib.parse import urlsplit

from django.conf import settings
from django.core.management.base import CommandError

#: Set in the process that runs inside a stage.
MARK = "DEMO_STAGE"


def on_stage() -> bool:
    return MARK in os.environ


def run_on_stage(arguments: list[str], *, keep: bool = False, variables: Mapping[str, str] | None = None) -> int:
    """Run ``manage.py`` with these arguments on a stage, wait for its end, take the stage down. Returns the exit code.

    Raises:
        CommandError: see :func:`stage`.
    """
    with stage(keep=keep) as environment:
        command = [sys.executable, str(settings.BASE_DIR / "manage.py"), *arguments]
        inside = subprocess.Popen(command, env={**environment, **(variables or {})})
        signal.signal(signal.SIGTERM, lambda *_: inside.terminate())
        while True:
            # A Ctrl-C reaches both. The one inside ends its processes first, so wait for it.
            with contextlib.suppress(KeyboardInterrupt):
                return inside.wait()


@contextlib.contextmanager
def stage(*, keep: bool = False) -> Iterator[dict[str, str]]:
    """The environment of a fresh run.

    Args:
        keep: leave the directory with its logs and mails behind.

    Raises:
        CommandError: the database server is of the wrong kind or refuses.
    """
    name = f"reliable_jobs_demo_{secrets.token_hex(4)}"
    directory = tempfile.mkdtemp(prefix="reliable_jobs_demo_")
    # Killed workers leave temporary folders behind: those go with the directory.
    temporary = os.path.join(directory, "tmp")
    os.mkdir(temporary)
    environment = {**os.environ, MARK: name, "DEMO_DIR": directory, "DEMO_QUEUE": name, "TMPDIR": temporary}
    environment["PYTHONUNBUFFERED"] = "1"
    for variable in ("CELERY_BROKER_URL", "CELERY_BROKER_READ_URL", "CELERY_BROKER_WRITE_URL"):
        environment.pop(variable, None)  # Celery would prefer these to the settings
    with contextlib.ExitStack() as undo:
        if not keep:
            undo.callback(shutil.rmtree, directory, ignore_errors=True)
        url = os.environ.get("DATABASE_URL", "")
        if url and not url.startswith("sqlite"):
            environment["DATABASE_URL"] = undo.enter_context(_own_database(url, name))
        else:
            environment.pop("DATABASE_URL", None)  # SQLite: a file of its own in the directory
        broker = os.environ.get("BROKER_URL", "")
        if broker and not broker.startswith("files:"):
            undo.callback(_delete_queue, broker, name)
        yield environment


@contextlib.contextmanager
def _own_database(url: str, name: str) -> Iterator[str]:
    if not urlsplit(url).scheme.startswith("postgres"):
        raise CommandError(f"DATABASE_URL must name a PostgreSQL server (postgresql://…), not {urlsplit(url).scheme}.")
    import psycopg

    def administer(statement: str) -> None:
        with psycopg.connect(url, autocommit=True, connect_timeout=10) as connection:
            connection.execute(statement)

    try:
        administer(f'CREATE DATABASE "{name}"')
    except psycopg.Error as error:
        raise CommandError(
            f"The demo makes a database of its own on the server of DATABASE_URL, and can't: {str(error).strip()}\n"
            "Check that the server runs and that the user has CREATEDB (ALTER ROLE … CREATEDB)."
        ) from error
    try:
        yield urlsplit(url)._replace(path=f"/{name}").geturl()
    finally:
        administer(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


def _delete_queue(url: str, name: str) -> None:
    from kombu import Connection

    with contextlib.suppress(Exception), Connection(url, connect_timeout=10) as connection:
        channel = connection.channel()
        channel.queue_delete(name)
        channel.exchange_delete(name)
