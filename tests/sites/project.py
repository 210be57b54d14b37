"""Makes a site's project: startproject, Celery's first steps with Django, and settings that are written out."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import string
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

from tests.sites.site import Site

TEMPLATE = Path(__file__).parent / "template"
_DATABASES = re.compile(r"^DATABASES = \{\n(?:.*\n)*?\}\n", re.M)

SETTINGS = """
CELERY_TASK_DEFAULT_QUEUE = '$queue'
CELERY_BROKER_CHANNEL_ERROR_RETRY = True
WORK_SECONDS = $work_seconds
"""


class CommandFailed(RuntimeError):
    """A command of the project ended with an error; the message holds what it printed."""


class Project:
    """A folder with a Django project, and the processes that were started in it.

    Args:
        programs: the environment's bin directory.
        values: what stands for $name, $port … in the texts of the site.
    """

    def __init__(self, site: Site, folder: Path, programs: Path, values: Mapping[str, str]) -> None:
        self.site = site
        self.folder = folder
        self.python = str(programs / "python")
        self.programs = programs
        self.values = {**values, "work_seconds": str(site.work_seconds), "folder": str(folder)}
        self.processes: list[Process] = []
        path = os.pathsep.join([str(programs), "/usr/local/bin", "/usr/bin", "/bin", "/usr/sbin", "/sbin"])
        kept = {name: value for name, value in os.environ.items() if name in ("LANG", "HOME", "TMPDIR")}
        self.environment = {**kept, "PATH": path, "PYTHONUNBUFFERED": "1", **site.variables}

    def make(self) -> None:
        site = self.site
        self.folder.mkdir(parents=True)
        if site.compiled:
            self._compile_packages()
        self.run(str(self.programs / "django-admin"), "startproject", "proj", ".")
        for template in [TEMPLATE, *([TEMPLATE.with_name(site.template)] if site.template else [])]:
            shutil.copytree(template, self.folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
        for path, old, new in site.replaced:
            text = (self.folder / path).read_text()
            if old not in text:
                raise ValueError(f"{site.name}: {path} has no {old!r}")
            (self.folder / path).write_text(text.replace(old, new))
        for path, text in site.files.items():
            (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / path).write_text(self.fill(text))
        settings = self.folder / "proj/settings.py"
        text = settings.read_text()
        apps = ["shop", *(f"django_celery_{extra}" for extra in site.extras if extra in ("beat", "results"))]
        listed = "".join(f"    '{app}',\n" for app in [*apps, "reliable_jobs"])
        text = text.replace("    'django.contrib.staticfiles',\n", f"    'django.contrib.staticfiles',\n{listed}")
        text, count = _DATABASES.subn(lambda found: self.fill(site.databases).strip() + "\n", text)
        assert count == 1, "startproject's settings have changed"
        tail = site.brokers + SETTINGS
        if "results" in site.extras:
            tail += "CELERY_RESULT_BACKEND = 'django-db'\n"
        if "beat" in site.extras:
            tail += "CELERY_BEAT_SCHEDULER = 'django_celery_beat.schedulers:DatabaseScheduler'\n"
        settings.write_text(text + self.fill(tail + site.settings))
        own = [folder.name for folder in (self.folder / "shop", self.folder / "tenants") if folder.is_dir()]
        self.manage("makemigrations", *own, "-v", "0")

    def _compile_packages(self) -> None:
        """A copy of the environment's packages, without a single .py file."""
        (installed,) = self.programs.parent.glob("lib/python*/site-packages")
        packages = self.folder / "packages"
        shutil.copytree(installed, packages, ignore=shutil.ignore_patterns("__pycache__"))
        # Its status is 1 if a file can't be compiled; some packages bring such, for other versions of Python.
        subprocess.run(
            [self.python, "-m", "compileall", "-q", "-b", str(packages)], stdout=subprocess.DEVNULL, timeout=300
        )
        for source in packages.rglob("*.py"):
            source.unlink()
        self.environment["PYTHONPATH"] = str(packages)

    def fill(self, text: str) -> str:
        return string.Template(text).substitute(self.values)

    def manage(self, *arguments: str) -> str:
        return self.run(self.python, "manage.py", *arguments)

    def run(self, *argv: str) -> str:
        """What the command printed.

        Raises:
            CommandFailed: it ended with an error, or took longer than two minutes.
        """
        try:
            done = subprocess.run(
                argv,
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=360,
            )
        except subprocess.TimeoutExpired as error:
            raise CommandFailed(f"{' '.join(argv)}: not within two minutes\n{error.output}") from None
        if done.returncode:
            raise CommandFailed(f"{' '.join(argv)}\n{done.stdout[-6000:]}")
        return done.stdout

    def celery(self, name: str, *arguments: str) -> Process:
        return self.start(name, self.python, "-m", "celery", "-A", "proj", *arguments)

    def start(self, name: str, *argv: str) -> Process:
        launcher = [
            str(self.programs / part) if number == 0 else part for number, part in enumerate(self.site.launcher)
        ]
        process = Process(name, (*launcher, *argv), self.folder, self.environment)
        self.processes.append(process)
        return process

    def stop(self) -> None:
        """End all processes: by SIGTERM, and after some seconds by SIGKILL to their groups."""
        for process in self.processes:
            process.terminate()
        deadline = time.monotonic() + 15
        for process in self.processes:
            process.end(max(0.0, deadline - time.monotonic()))


class Process:
    """One of the project's processes, in a process group of its own, with its output in a file of the project."""

    def __init__(self, name: str, argv: tuple[str, ...], folder: Path, environment: Mapping[str, str]) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                argv,
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    @property
    def code(self) -> int | None:
        return self._process.poll()

    @property
    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def terminate(self) -> None:
        if self.running:
            self._process.terminate()

    def end(self, seconds: float) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        self.kill()

    def kill(self) -> None:
        """SIGKILL to the whole group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
