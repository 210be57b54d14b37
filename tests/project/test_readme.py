"""The README is followed word for word: its files, its diff, its commands, with real processes. And what the documents
say of the code (settings, states, rooms) is compared with the code."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import importlib
import os
import pty
import re
import shlex
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dj_database_url
import kombu
import psycopg
import pytest

from reliable_jobs import conf
from reliable_jobs.status import TRANSITIONS, Status
from tests.support.harness import server_urls, wait_until
from tests.support.private_servers import free_port

ROOT = Path(__file__).resolve().parent.parent.parent
README = (ROOT / "README.md").read_text()
ARCHITECTURE = (ROOT / "docs/architecture.md").read_text()
SETTINGS = (ROOT / "docs/settings.md").read_text()
#: Seconds for a job to run, starting worker and beat included.
PATIENCE = 180.0
DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]


# --- from an existing Celery project to the first reliable job --------------------------------------------------------


def section(text: str, title: str) -> str:
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", text, re.M | re.S)
    assert found, f"no section {title!r}"
    return found[1]


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)


FIRST_JOB = "From an existing Celery project to the first reliable job"
ADOPTION = section(README, FIRST_JOB)


def commands(title: str) -> list[str]:
    return re.findall(r"^ *\$ (.+)", section(README, title), re.M)


class Project:
    """A stock Django project with Celery, as Celery's "First steps with Django" makes it, in an empty directory."""

    def __init__(self, directory: Path, settings: str) -> None:
        self.directory = directory
        #: What a reader has in settings.py beside what the README shows: his own servers.
        self.settings = settings
        self.running: list[tuple[str, subprocess.Popen[bytes], Path]] = []
        #: What commands have written to standard error.
        self.warned = ""
        # Those of this suite: the celery command would obey BROKER_URL.
        suites = {"DJANGO_SETTINGS_MODULE", "BROKER_URL", "DATABASE_URL"}
        kept = {name: value for name, value in os.environ.items() if name not in suites}
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        self.environment = {**kept, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}

    def make(self) -> None:
        # An empty PATH keeps startproject from reformatting its files with a black that happens to be installed.
        self.run(sys.executable, "-m", "django", "startproject", "proj", ".", PATH="")
        self.run(sys.executable, "manage.py", "startapp", "demoapp", PATH="")
        settings = self.directory / "proj/settings.py"
        static = "    'django.contrib.staticfiles',\n"
        assert settings.read_text().count(static) == 1
        settings.write_text(settings.read_text().replace(static, f"{static}    'demoapp',\n"))
        (self.directory / "proj/__init__.py").write_text(
            "from .celery import app as celery_app\n\n__all__ = ('celery_app',)\n"
        )
        for block in blocks(ADOPTION, "python"):
            heading, content = block.split("\n", 1)
            name, _, appended = heading.removeprefix("# ").partition(", ")
            path = self.directory / name
            path.write_text((path.read_text() if appended else "") + content)

    def apply_diff(self) -> None:
        (diff,) = blocks(ADOPTION, "diff")
        tool = ["git", "apply", "-"] if shutil.which("git") else ["patch", "-p1"]
        subprocess.run(tool, input=diff.encode(), cwd=self.directory, check=True, env=self.environment)
        with (self.directory / "proj/settings.py").open("a") as settings:
            settings.write(self.settings)

    def run(self, *argv: str, **environment: str) -> str:
        done = subprocess.run(
            argv, cwd=self.directory, env={**self.environment, **environment}, capture_output=True, timeout=360
        )
        assert done.returncode == 0, f"{argv}:\n{done.stdout.decode()}\n{done.stderr.decode()}"
        self.warned += done.stderr.decode()
        return done.stdout.decode()

    def shell(self, code: str) -> str:
        return self.run(sys.executable, "manage.py", "shell", "-v", "0", "-c", code)

    def type(self, command: str) -> str:
        """Do what a reader does with a line of the README; a worker or beat goes on in the background."""
        program, *arguments = shlex.split(command)
        if program == "celery":
            self.start(arguments[2], [sys.executable, "-m", "celery", *arguments])
            return ""
        assert program == "python", f"the README has a command that nobody here can type: {command}"
        return self.run(sys.executable, *arguments)

    def answer(self, command: str, *answers: tuple[str, str]) -> None:
        """Type a command that asks questions, and the answers, each after the beginning of its prompt."""
        _, *arguments = shlex.split(command)
        ours, theirs = pty.openpty()
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=self.directory,
            env={**self.environment, "PYTHONWARNINGS": "ignore"},
            stdin=theirs,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # without a terminal of its own, it asks standard input for the password
            bufsize=0,
        )
        said = b""
        try:
            assert process.stdout is not None
            for prompt, text in answers:
                # Asking for a password drops what was typed before, and a warning may hold a colon too.
                while not re.search(rf"^{re.escape(prompt)}[^:\n]*: $".encode(), said, re.MULTILINE):
                    byte = process.stdout.read(1)
                    assert byte, said.decode()
                    said += byte
                os.write(ours, f"{text}\n".encode())
                said += b"\n"
            rest, _ = process.communicate(timeout=180)
            assert process.returncode == 0, (said + rest).decode()
        finally:
            process.kill()
            process.wait()
            os.close(ours)
            os.close(theirs)

    def admin_page(self, server: str, path: str, user: str, password: str) -> str:
        """What a browser shows that logs in to the development server."""
        _, *arguments = shlex.split(server)
        port = free_port()
        self.start("runserver", [sys.executable, *arguments, str(port), "--noreload"])
        opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
        url = f"http://127.0.0.1:{port}{path}"

        def form() -> str:
            try:
                with opener.open(url, timeout=90) as answer:
                    return str(answer.read().decode())
            except urllib.error.URLError:
                return ""

        login = wait_until(form, "the development server answers", PATIENCE, every=0.2)
        (token,) = set(re.findall(r'name="csrfmiddlewaretoken" value="(\w+)"', login))
        fields = {"csrfmiddlewaretoken": token, "username": user, "password": password, "next": path}
        data = urllib.parse.urlencode(fields).encode()
        with opener.open(f"http://127.0.0.1:{port}/admin/login/", data, timeout=90) as answer:
            return str(answer.read().decode())

    def start(self, name: str, argv: list[str]) -> None:
        log = self.directory / f"{name}.log"
        with log.open("ab") as output:
            process = subprocess.Popen(
                argv, cwd=self.directory, env=self.environment, stdout=output, stderr=output, start_new_session=True
            )
        self.running.append((name, process, log))

    def stop(self) -> None:
        for _, process, _ in self.running:
            process.terminate()
        for _, process, _ in self.running:
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def said(self) -> str:
        return "\n".join(f"--- {name}\n{log.read_text()[-4000:]}" for name, _, log in self.running)


@contextlib.contextmanager
def followed(project: Project) -> Iterator[Project]:
    """The project as it stands when a reader has done everything; its processes end with the block."""
    install, *rest = commands(FIRST_JOB)
    assert install.startswith("pip install "), "here the checkout itself is on the path instead"
    project.make()
    project.apply_diff()
    try:
        *typed, call, look, superuser, server = rest
        for command in typed:
            project.type(command)
        assert "reliable_jobs.W" not in project.warned, project.warned
        assert sorted(name for name, _, _ in project.running) == ["beat", "worker"]
        assert project.type(call) == "made widget 1\n"
        last_line_shown = blocks(ADOPTION, "console")[-2].splitlines()[-1]
        wait_until(lambda: project.type(look).strip() == last_line_shown, last_line_shown, PATIENCE, every=0.5)
        secret = "a long-winded secret"
        answers = [("Username", "admin"), ("Email address", ""), ("Password", secret), ("Password (again)", secret)]
        project.answer(superuser, *answers)
        page = project.admin_page(server, "/admin/reliable_jobs/job/", "admin", secret)
        assert "demoapp.tasks.rename_widget" in page
        assert "succeeded" in page.lower()
        yield project
    except BaseException:
        print(project.said())
        raise
    finally:
        project.stop()


def names_of_widgets(project: Project) -> list[str]:
    code = "from demoapp.models import Widget; [print(widget.name) for widget in Widget.objects.order_by('id')]"
    return project.shell(code).splitlines()


@contextlib.contextmanager
def database_of_its_own(server: str) -> Iterator[dict[str, Any]]:
    name = f"readme_{uuid.uuid4().hex[:8]}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
    try:
        yield {**dj_database_url.parse(server), "NAME": name}
    finally:
        with psycopg.connect(server, autocommit=True) as connection:
            connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


@contextlib.contextmanager
def queue_of_its_own(broker: str) -> Iterator[str]:
    name = f"readme_{uuid.uuid4().hex[:8]}"
    try:
        yield name
    finally:
        with kombu.Connection(broker) as connection:
            connection.default_channel.queue_delete(name)


@pytest.mark.servers
@pytest.mark.slow
@pytest.mark.promise("I1")
@pytest.mark.timeout(1200)
def test_c21_a_stock_project_gets_its_first_job_by_the_readmes_diff(tmp_path: Path) -> None:
    database, broker = server_urls()
    with database_of_its_own(database) as parsed, queue_of_its_own(broker) as queue:
        own = f"DATABASES = {{'default': {parsed!r}}}\nCELERY_BROKER_URL = {broker!r}\n"
        with followed(Project(tmp_path, f"{own}CELERY_TASK_DEFAULT_QUEUE = {queue!r}\n")) as project:
            assert names_of_widgets(project) == ["widget 1"]
            assert "no issues" in project.run(
                sys.executable, "manage.py", "check", "--tag", "reliable_jobs", "--deploy"
            )

            project.shell(
                "from django.db import transaction; from demoapp.views import create\n"
                "with transaction.atomic():\n    create(None)\n    transaction.set_rollback(True)"
            )
            count = project.shell("from reliable_jobs.models import Job; print(Job.objects.count())")
            assert count.strip() == "1", "the job of a transaction that was rolled back"

            project.shell(
                "from demoapp.tasks import rename_widget; rename_widget.apply_async((1, 'later'), countdown=1)"
            )
            later = "a delayed job, published by the sweeper in beat"
            wait_until(lambda: names_of_widgets(project) == ["later"], later, PATIENCE, every=0.5)

            project.stop()
            for command in commands("Commands"):
                project.type(command)
            leave_again(project)


def leave_again(project: Project) -> None:
    unfinished, *removals = commands("How to leave again")
    assert "0 unfinished" in project.type(unfinished)
    for command in removals:
        project.type(command)
    left = "from django.db import connection as c; print([t for t in c.introspection.table_names() if 'reliable' in t])"
    assert project.shell(left).strip() == "[]"
    rows = (
        "from django_celery_beat.models import PeriodicTask as P; print(P.objects.filter(task__contains='job').count())"
    )
    assert project.shell(rows).strip() == "0"


@pytest.mark.slow
def test_the_same_diff_does_on_sqlite_with_a_broker_made_of_files(tmp_path: Path) -> None:
    folder = tmp_path / "messages"
    (folder / "exchanges").mkdir(parents=True)
    shutil.copy(ROOT / "demo_project/file_broker.py", tmp_path / "file_broker.py")
    own = f"""
from kombu.transport import TRANSPORT_ALIASES
TRANSPORT_ALIASES["files"] = "file_broker:Transport"
CELERY_BROKER_URL = "files://"
CELERY_BROKER_TRANSPORT_OPTIONS = {{
    "data_folder_in": {str(folder)!r},
    "data_folder_out": {str(folder)!r},
    "control_folder": {str(folder / "exchanges")!r},
    "polling_interval": 0.1,
}}
CELERY_WORKER_ENABLE_REMOTE_CONTROL = False
"""
    with followed(Project(tmp_path, own)) as project:
        assert names_of_widgets(project) == ["widget 1"]


# --- what the documents say of the code -------------------------------------------------------------------------------


def table(text: str, *, first: str) -> list[list[str]]:
    """The cells of the table whose first column is headed so."""
    found = re.search(rf"^\| {re.escape(first)} \|.*\n\|[-| ]+\|\n((?:\|.*\n)+)", text, re.M)
    assert found, f"no table headed {first!r}"
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in found[1].splitlines()]


DEFAULTS = {field.name: getattr(conf.Settings(), field.name) for field in dataclasses.fields(conf.Settings)}


def written(value: Any) -> str:
    return f"`{dict(value) if isinstance(value, conf.Mapping) else value!r}`"


def test_the_settings_page_lists_every_setting_with_its_default() -> None:
    rows = table(SETTINGS, first="setting")
    assert [(name.strip("`"), default) for name, default, *_ in rows] == [
        (name, written(value)) for name, value in DEFAULTS.items()
    ]


def test_the_readmes_settings_exist_and_have_the_defaults_it_names() -> None:
    rows = table(README, first="setting")
    assert len(rows) > 4
    for name, default, *_ in rows:
        assert default == written(DEFAULTS[name.strip("`")]), name


def test_the_settings_page_lists_every_system_check() -> None:
    source = "".join(path.read_text() for path in (ROOT / "reliable_jobs/checks").glob("*.py"))
    listed = [name.strip("`") for name, _ in table(SETTINGS, first="check")]
    assert listed == sorted(set(re.findall(r"id=\"(reliable_jobs\.[EIW]\d+)\"", source)))


def test_the_state_graph_shows_every_transition_and_no_other() -> None:
    (graph,) = blocks(ARCHITECTURE, "mermaid")
    drawn = {(start, end) for start, end in re.findall(r"^ *(\w+) --> (\w+)", graph, re.M)}
    assert drawn == {(str(start), str(end)) for start, ends in TRANSITIONS.items() for end in ends}
    assert re.findall(r"\[\*\] --> (\w+)", graph) == [Status.WAITING]


def file_of_test(name: str) -> Path:
    """The documents name test files without their folder, so no two may have the same name."""
    (path,) = [path for folder in ("tests", "qa") for path in (ROOT / folder).rglob(name)]
    return path


def test_the_promise_table_names_tests_that_carry_the_promises_id() -> None:
    rows = table(ARCHITECTURE, first="id")
    assert [row[0] for row in rows] == [f"I{number}" for number in range(1, 11)]
    for promise, *_, tests in rows:
        named = re.findall(r"`(test_\w+\.py)`", tests)
        assert named, f"{promise}: no test is named"
        for name in named:
            assert f'promise("{promise}")' in file_of_test(name).read_text(), f"{name} has no test of {promise}"


def test_undocumented_names_are_pinned_by_tests_that_exist() -> None:
    for names, _, _, pinned in table(ARCHITECTURE, first="names"):
        for name in re.findall(r"`(test_\w+\.py)`", pinned):
            assert file_of_test(name), f"{names}: {name}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_python_in_the_documents_compiles_and_its_imports_from_here_work(document: Path) -> None:
    for block in blocks(document.read_text(), "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("reliable_jobs"):
                module = importlib.import_module(node.module or "")
                for alias in node.names:
                    assert hasattr(module, alias.name), f"{node.module}.{alias.name}"


#: Folders at the edge, which the page describes as a whole.
EDGES = {
    "admin",
    "adopt",
    "checks",
    "health",
    "idempotency",
    "management",
    "migrations",
    "telemetry",
    "templatetags",
    "testing",
}


def test_the_architecture_page_names_every_file() -> None:
    package = ROOT / "reliable_jobs"
    files = [path.relative_to(package) for path in package.rglob("*.py") if path.name != "__init__.py"]
    missing = sorted(str(path) for path in files if path.parts[0] not in EDGES and f"`{path}`" not in ARCHITECTURE)
    assert not missing, f"docs/architecture.md does not mention {', '.join(missing)}"


@pytest.mark.parametrize("folder", ["task", "enqueue", "dispatch", "message", "worker", "run", "lifecycle", "sweep"])
def test_a_folder_says_what_enters_and_leaves_and_what_to_read_first(folder: str) -> None:
    said = importlib.import_module(f"reliable_jobs.{folder}").__doc__ or ""
    assert f"### `{folder}/`" in ARCHITECTURE
    assert all(word in said for word in ("Enters: ", "Leaves: ", "Never here: ", " first")), said
    assert len(said.strip().splitlines()) <= 8


def test_a_newcomers_questions_are_answered_with_functions_that_exist() -> None:
    rows = table((ROOT / "CONTRIBUTING.md").read_text(), first="question")
    assert len(rows) >= 10
    for question, answer in rows:
        file, found = "", 0
        for name in re.findall(r"`([\w/.]+)`", answer):
            if "/" in name or name.endswith(".py"):
                file = name
            else:
                text = (ROOT / "reliable_jobs" / file).read_text()
                assert re.search(rf"^\s*((def|class) {name}\b|{name}\b.* = )", text, re.MULTILINE), (
                    f"{question}: {file} {name}"
                )
                found += 1
        assert found, question


def test_paths_and_links_in_the_documents_lead_somewhere() -> None:
    lost = []
    for document in DOCUMENTS:
        text = document.read_text()
        for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
            if not (document.parent / link).exists():
                lost.append(f"{document.name}: {link}")
        for path in re.findall(r"`((?:tests|qa|docs|tools|reliable_jobs|demo_project)/[\w./]+)`", text):
            if not (ROOT / path).exists():
                lost.append(f"{document.name}: {path}")
    assert not lost


def test_the_readme_lists_every_command() -> None:
    files = (ROOT / "reliable_jobs/management/commands").glob("reliable_jobs_*.py")
    assert sorted(name.strip("`") for name, _ in table(README, first="command")) == sorted(path.stem for path in files)


def test_commands_in_the_documents_exist() -> None:
    from django.core.management import get_commands

    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
    known = {*get_commands(), *(path.stem for path in (ROOT / "demo_project").rglob("management/commands/*.py"))}
    for document in DOCUMENTS:
        text = document.read_text()
        for target in re.findall(r"(?:^\$ |`)make ([\w-]+)", text, re.M):
            assert target in targets, f"{document.name}: make {target}"
        for command in re.findall(r"manage\.py ([a-z_]+)", text):
            assert command in known, f"{document.name}: manage.py {command}"
