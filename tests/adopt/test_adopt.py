"""What ``reliable_jobs_check --adopt`` reads off a project's source."""

from __future__ import annotations

import io
import json
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import _state
from django.core.management import CommandError, call_command

from reliable_jobs.adopt import calls, report, rules
from reliable_jobs.adopt.scan import Scan
from reliable_jobs.adopt.signals import Receivers
from reliable_jobs.adopt.source import Function, Sources
from tests.celery_app import app
from tests.testapp import tasks

MODELS = """
    from django.db import models

    class Account(models.Model):
        pass

    class Document(models.Model):
        account = models.ForeignKey(Account, on_delete=models.CASCADE)
        file = models.FileField()
        def parse(self):
            raise ValueError
        def forget(self):
            self.file.delete(save=False)
"""
IMPORTS = """
    import os, subprocess, time, shutil, tempfile, threading, requests
    from pathlib import Path
    from celery import shared_task
    from django.core.cache import cache
    from django.core.mail import send_mail
    from django.db import IntegrityError, close_old_connections, connection, connections, transaction
    from shop.models import Document
"""


def scan(directory: Path, code: str, **files: str) -> list[tuple[str, int]]:
    """The codes found in the function ``work`` of shop/tasks.py, with the number of the function that holds them."""
    sources = {"shop/__init__.py": "", "shop/models.py": MODELS, "shop/tasks.py": f"{textwrap.dedent(IMPORTS)}\n{code}"}
    for name, text in {**sources, **{f"shop/{name}.py": text for name, text in files.items()}}.items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text(textwrap.dedent(text))
    project = Sources([directory])
    work = project.find("shop.tasks.work")
    assert isinstance(work, Function), project.unread
    found = Scan(project, Receivers(project))
    found.function(work)
    return sorted((finding.code, len(finding.via)) for finding in found.findings.values())


UNSAFE = {
    "commit": [
        "transaction.commit()",
        "connection.set_autocommit(True)",
        "connections['other'].commit()",
        "with connection.cursor() as cursor:\n    cursor.execute('COMMIT')",
    ],
    "durable": ["with transaction.atomic(durable=True):\n    pass"],
    "chunks": ["for n in range(9):\n    with transaction.atomic():\n        Document.objects.create()"],
    "file": [
        "os.unlink('a')",
        "shutil.move('a', 'b')",
        "Path('a').unlink()",
        "open('a', 'w')",
        "Path('a').open('w')",
        "path = Path('a') / 'b'\npath.unlink()",
        "Document.objects.get().file.delete()",
        "for document in Document.objects.filter():\n    document.file.delete()",
        "argument.write_text('x')",
    ],
    "subprocess": ["subprocess.run(['a'])", "os.system('a')", "subprocess.Popen('a').wait()"],
    "network": [
        "requests.get('a', timeout=3)",
        "with requests.Session() as s:\n    s.get('a')",
        "send_mail()",
        "try:\n    argument()\nexcept requests.ConnectionError:\n    pass",
    ],
    "sleep": ["time.sleep(3)"],
    "connection": ["connection.close()", "close_old_connections()"],
    "thread": ["threading.Thread(target=print).start()"],
    "recorded-error": [
        "d = Document.objects.get()\ntry:\n    d.parse()\nexcept ValueError:\n    d.save()\n    raise",
        "try:\n    argument()\nexcept ValueError as e:\n    Document.objects.filter().update(x=1)\n"
        "    raise self.retry(exc=e)",
    ],
    "status": ["self.update_state(state='PROGRESS')", "d = Document.objects.get()\nd.status = 'processing'\nd.save()"],
    "integrity-error": [
        "for n in range(9):\n    try:\n        Document.objects.create()\n    except IntegrityError:\n        pass",
        "for n in range(9):\n    try:\n        Document.objects.create()\n    except Exception:\n        print(n)",
    ],
    "cache": ["cache.set('a', 1)"],
    "wait": ["other.delay().get()", "r = other.delay()\nr.get(timeout=3)"],
}
SAFE = [
    "raise self.replace(other.s())",
    "transaction.on_commit(lambda: os.unlink('a'))",
    "def remove():\n    os.unlink('a')\ntransaction.on_commit(remove)",
    "with tempfile.TemporaryDirectory() as folder:\n    path = Path(folder) / 'a'\n    path.write_text('x')",
    "handle, name = tempfile.mkstemp()\nname = tempfile.mktemp()\nos.unlink(name)",
    "with transaction.atomic():\n    Document.objects.create()",
    "for n in range(9):\n    try:\n        with transaction.atomic():\n            Document.objects.create()\n"
    "    except IntegrityError:\n        pass",
    "open('a').read()",
    "other.delay(1)",
    "cache.get('a')",
    "os.unlink('a')  # atomic: ok",
    "try:\n    argument()\nexcept ValueError:\n    raise",
    "'a'.replace('a', 'b')",
    "d = {}\nd.get('a')\nd.update(a=1)",
    "import sqlite3\nsqlite3.connect('a').execute('SELECT 1')",
]


@pytest.mark.parametrize(("code", "body"), [(code, body) for code, bodies in UNSAFE.items() for body in bodies])
def test_e1_what_is_unsafe_in_one_transaction_is_found(tmp_path: Path, code: str, body: str) -> None:
    function = "@shared_task(bind=True)\ndef work(self, argument=None):\n" + textwrap.indent(body, "    ")
    assert {found for found, _ in scan(tmp_path, function)} == {code}


@pytest.mark.parametrize("body", SAFE)
def test_what_is_safe_is_not_reported(tmp_path: Path, body: str) -> None:
    function = "@shared_task(bind=True)\ndef work(self, argument=None):\n" + textwrap.indent(body, "    ")
    assert scan(tmp_path, function) == []


FOLLOWED = {
    "a function of another module": ("from shop.files import remove\ndef work():\n    remove()", {}),
    "a module's attribute": ("from shop import files\ndef work():\n    files.remove()", {}),
    "a re-export": ("from shop.other import remove\ndef work():\n    remove()", {"other": "from .files import remove"}),
    "an import inside the function": ("def work():\n    from shop.files import remove\n    remove()", {}),
    "a method": ("def work():\n    Document.objects.get(pk=1).forget()", {}),
    "a method of what a loop goes over": (
        "def work():\n    found = Document.objects.all()\n    for one in found.iterator():\n        one.forget()",
        {},
    ),
    "a method of a new object": ("from shop.files import Mover\ndef work():\n    mover = Mover()\n    mover.run()", {}),
    "a method of a base class": ("from shop.files import Child\ndef work():\n    Child().run()", {}),
    "an argument's annotation": ("def work(document: 'Document | None'):\n    document.forget()", {}),
    "what a function returns": ("from shop.files import make\ndef work():\n    make().run()", {}),
    "a receiver of a model's signal": (
        "def work():\n    Document.objects.get().delete()",
        {
            "receivers": """
            import os
            from django.db.models.signals import post_delete
            from django.dispatch import receiver
            from shop.models import Document
            @receiver(post_delete, sender=Document)
            def clean(instance, **kwargs):
                os.unlink(instance.path)
         """
        },
    ),
    "a receiver of the project's signal": (
        "from shop.signals import stored\ndef work():\n    stored.send(sender=None)",
        {
            "signals": "from django.dispatch import Signal\nstored = Signal()",
            "receivers": "import os\nfrom shop.signals import stored\n"
            "def f(**k):\n    os.unlink('a')\nstored.connect(f)",
        },
    ),
    "one of several classes": (
        "from shop.files import Mover, Child\ndef work():\n    for cls in [Mover, Child]:\n        one = cls()\n"
        "        one.run()",
        {},
    ),
    "a method whose name says whose it is": ("def work(thing):\n    thing.remove_the_original()", {}),
}
FILES = """
    import os
    def remove():
        os.unlink('a')
    class Mover:
        def run(self):
            os.unlink('b')
        def remove_the_original(self):
            os.unlink('c')
    class Child(Mover):
        pass
    def make():
        return Mover()
"""


@pytest.mark.parametrize("way", list(FOLLOWED))
def test_e1_a_file_that_is_removed_by_a_helper_is_found(tmp_path: Path, way: str) -> None:
    code, files = FOLLOWED[way]
    found = scan(tmp_path, code, **{"files": FILES, **files})
    assert found
    assert {kind for kind, _ in found} == {"file"}
    assert all(depth >= 1 for _, depth in found)


CALLS = """
    async def view(request):
        other.delay()
        await other.adelay()
        await sync_to_async(lambda: other.delay())()
    def sync(request):
        try:
            work()
        except ValueError:
            alarm.delay()
            raise
        except KeyError:
            alarm.apply_async(transactional=False)
            raise
        except OSError:
            alarm.delay()
        other.apply_async(task_id="import-42")
        other.apply_async(task_id=f"import-{n}")
        other.apply_async(task_id=str(uuid4()))
        other.apply_async(task_id=f"{one}")
        other.apply_async(task_id="import-43")  # atomic: ok
"""


def test_e1_calls_that_mean_something_else_are_found(tmp_path: Path) -> None:
    (tmp_path / "views.py").write_text(textwrap.dedent(CALLS))
    found = sorted((finding.line - 1, finding.code) for finding in calls.calls_in(Sources([tmp_path])))
    assert found == [(2, "async-call"), (9, "call-then-raise"), (16, "task-id"), (17, "task-id")]


def test_recursion_ends(tmp_path: Path) -> None:
    code = "class A:\n    def __init__(self):\n        self.a = self.a.b()\n    def b(self):\n        return self.a\n"
    assert scan(tmp_path, code + "def work():\n    A().a.b()\n    work()") == []


def test_each_code_has_its_section_in_the_documentation() -> None:
    text = (Path(__file__).parent.parent.parent / report.DOCUMENT).read_text()
    sections = {line.removeprefix("## ") for line in text.splitlines() if line.startswith("## ")}
    assert sections - {rule.code for rule in (*rules.RULES, *calls.RULES)} == {"What app-wide adoption does"}


@pytest.fixture
def current_app() -> Iterator[None]:
    before = _state._tls.current_app
    app.set_current()
    yield
    _state._set_current_app(before)


def test_a_functions_source_is_found_below_autoretrys_wrapper(tmp_path: Path) -> None:
    """``_orig_run`` is Celery's own name for it."""
    made = app.task(name="adopt.retried", shared=False, lazy=False, autoretry_for=(KeyError,))(tasks.log_outside)
    assert report._run(made) is tasks.log_outside


@pytest.mark.usefixtures("current_app")
def test_the_command_lists_atomic_suspects_and_says_so_by_its_exit_status(capsys: Any) -> None:
    with pytest.raises(CommandError, match="atomic task"):
        call_command("reliable_jobs_check", "--adopt")
    said = capsys.readouterr().out
    place = tasks.gated.run.__code__.co_firstlineno
    assert f"tests.testapp.tasks.gated (atomic), tests/testapp/tasks.py:{place + 1}" in said
    assert "docs/atomic.md" in said
    out = io.StringIO()
    with pytest.raises(CommandError):
        call_command("reliable_jobs_check", "--adopt", "--json", stdout=out)
    found = {task["task"]: task for task in json.loads(out.getvalue())["tasks"]}
    assert found["tests.testapp.tasks.add"]["findings"] == []
    assert {finding["code"] for finding in found["tests.testapp.tasks.gated"]["findings"]} >= {"sleep"}
