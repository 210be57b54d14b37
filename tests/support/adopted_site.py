"""A small site with settings written by hand, whose Celery app is adopted as a whole: files in a directory of its own,
and real processes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import kombu
import psycopg

from tests.support.harness.process import fork_server

ROOT = Path(__file__).resolve().parent.parent.parent

SETTINGS = """
SECRET_KEY = "site"
USE_TZ = True
INSTALLED_APPS = ["django.contrib.contenttypes", "django.contrib.auth", *{apps!r}, "reliable_jobs", "archive"]
DATABASES = {{
    "default": {{
        "ENGINE": "django.db.backends.postgresql",
        "HOST": {host!r},
        "PORT": {port!r},
        "NAME": {name!r},
        "USER": {user!r},
        "PASSWORD": {password!r},
    }}
}}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
CELERY_BROKER_URL = {broker!r}
CELERY_TASK_DEFAULT_QUEUE = {queue!r}
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
RELIABLE_JOBS = {{"GRACE": 1, "LEASE": 5, "WORKER_SWEEP_INTERVAL": 0.5, **{reliable_jobs!r}}}
"""
CELERY = """
import os
from celery import Celery
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "proj.settings")
{base}
app = Celery("proj", {arguments})
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()
"""


class Site:
    """One directory, one database, one queue."""

    def __init__(self, directory: Path, server_url: str, broker_url: str, python: str = sys.executable) -> None:
        self.directory, self.server_url, self.broker_url, self.python = directory, server_url, broker_url, python
        self.name = f"site_{uuid.uuid4().hex[:8]}"
        self.running: list[tuple[Any, Path]] = []
        kept = {
            name: value
            for name, value in os.environ.items()
            if name not in ("DJANGO_SETTINGS_MODULE", "DATABASE_URL", "BROKER_URL", "PYTHONPATH")
        }
        self.environment = {**kept, "PYTHONUNBUFFERED": "1", "DJANGO_SETTINGS_MODULE": "proj.settings"}
        if python == sys.executable:
            self.environment["PYTHONPATH"] = str(ROOT)

    def make(
        self,
        files: dict[str, str],
        *,
        celery: str = 'task_cls="reliable_jobs:AdoptedTask"',
        base: str = "",
        apps: tuple[str, ...] = ("django_celery_beat", "django_celery_results"),
        more: str = "",
        **reliable_jobs: Any,
    ) -> None:
        server = urlsplit(self.server_url)
        settings = SETTINGS.format(
            apps=list(apps),
            host=server.hostname,
            port=str(server.port or ""),
            name=self.name,
            user=server.username or "",
            password=server.password or "",
            broker=self.broker_url,
            queue=self.name,
            reliable_jobs=reliable_jobs,
        )
        ours = {
            "proj/__init__.py": "from .celery import app as celery_app\n",
            "proj/celery.py": CELERY.format(arguments=celery, base=textwrap.dedent(base)),
            "proj/settings.py": settings + more,
            "archive/__init__.py": "",
            **files,
        }
        for path, text in ours.items():
            (self.directory / path).parent.mkdir(parents=True, exist_ok=True)
            (self.directory / path).write_text(textwrap.dedent(text))
        self.manage("migrate", "--run-syncdb", "-v", "0")

    def manage(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = self._run("-m", "django", *arguments)
        assert done.returncode == 0 or not check, f"{arguments}:\n{done.stdout}\n{done.stderr}"
        return done

    def python_code(self, code: str) -> str:
        """What a process with the project's Django prints."""
        prelude = "import django; django.setup()\nfrom archive import tasks\n"
        done = self._run("-c", prelude + textwrap.dedent(code))
        assert done.returncode == 0, f"{code}:\n{done.stdout}\n{done.stderr}"
        return done.stdout.strip()

    def _run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {**self.environment, "PYTHONWARNINGS": "ignore"}
        if self.python == sys.executable:
            return fork_server().run(list(arguments), environment, self.directory, 120)
        argv = [self.python, *arguments]
        return subprocess.run(argv, cwd=self.directory, env=environment, capture_output=True, text=True, timeout=360)

    def delay(self, task: str, *arguments: Any) -> str:
        """Enqueue a task of archive/tasks.py; returns the id."""
        return self.python_code(f"import json; print(tasks.{task}.delay(*json.loads({json.dumps(arguments)!r})).id)")

    def start(self, *arguments: str) -> None:
        log = self.directory / f"{arguments[0]}-{len(self.running)}.log"
        argv = ["-m", "celery", "-A", "proj", *arguments]
        process: Any
        with log.open("ab") as output:
            if self.python == sys.executable:
                process = fork_server().start(argv, self.environment, self.directory, log)
            else:
                process = subprocess.Popen(
                    [self.python, *argv],
                    cwd=self.directory,
                    env=self.environment,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                )
        self.running.append((process, log))

    @property
    def log(self) -> str:
        return "\n".join(log.read_text(errors="replace") for _, log in self.running)

    def rows(self, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
        url = urlsplit(self.server_url)._replace(path=f"/{self.name}").geturl()
        with psycopg.connect(url, autocommit=True) as connection:
            return connection.execute(query, parameters).fetchall()

    def status(self, job_id: str) -> tuple[str, str] | None:
        rows = self.rows("SELECT status, reason FROM reliable_jobs_job WHERE id = %s", job_id)
        return rows[0] if rows else None

    def ended(self, job_id: str) -> bool:
        return (self.status(job_id) or ("",))[0] in ("succeeded", "failed", "cancelled", "expired")


@contextlib.contextmanager
def site_in(directory: Path, server_url: str, broker_url: str, python: str = sys.executable) -> Iterator[Site]:
    """A site whose database exists; its processes, database and queue end with the block."""
    site = Site(directory, server_url, broker_url, python)
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{site.name}"')
    try:
        yield site
    except BaseException:
        print(site.log[-8000:])
        raise
    finally:
        for process, _ in site.running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(60)
        with psycopg.connect(server_url, autocommit=True) as connection:
            connection.execute(f'DROP DATABASE "{site.name}" WITH (FORCE)')
        with kombu.Connection(broker_url) as broker:
            broker.default_channel.queue_delete(site.name)
