"""A job's page: what it shows of arguments, result and history, whatever they hold, and what it hides."""

from __future__ import annotations

import json
import tracemalloc
import uuid
from typing import Any

import pytest
from django.db import connection
from django.test import Client, override_settings
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from kombu import compression

from reliable_jobs.models import Job, JobEvent
from reliable_jobs.status import EventKind, Reason, Status
from tests.admin import pages
from tests.admin.pages import LIST, make, page_of, said, url

boss = pages.boss
pytestmark = pytest.mark.django_db

# --- one job ----------------------------------------------------------------------------------------------------------


def test_a_jobs_page_shows_arguments_error_result_lineage_and_history(boss: Client) -> None:
    parent = make()
    job = make(
        status=Status.FAILED,
        reason=Reason.ERROR,
        failures=2,
        error="ValueError: no such order",
        traceback='  File "shop.py", line 3',
        result='{"lines": 4}',
        parent_id=parent.pk,
        root_id=parent.pk,
    )
    child = make(parent_id=job.pk)
    JobEvent.objects.create(job=job, kind=EventKind.FAILURE, actor="celery@host", detail="first")
    JobEvent.objects.create(job=job, kind=EventKind.RESCUE, actor="sweeper", detail="second")
    text = page_of(boss, job)
    for expected in ("x = 17", "y = &#x27;Ada&#x27;", "urgent = True", "ValueError: no such order", "line 3", "lines"):
        assert expected in text, expected
    assert text.index("second") < text.index("first")  # newest first
    for relative in (parent, child):
        assert reverse("admin:reliable_jobs_job_change", args=[relative.pk]) in text
    assert "Failed after 2 attempts: ValueError: no such order" in text


def test_history_and_children_are_bounded(boss: Client) -> None:
    job = make()
    JobEvent.objects.bulk_create(JobEvent(job=job, kind="rescue", detail=f"event-{n:03}") for n in range(120))
    for _ in range(25):
        make(parent_id=job.pk)
    with CaptureQueriesContext(connection) as captured:
        text = page_of(boss, job)
    many = [one["sql"] for one in captured if "jobevent" in one["sql"] or '"parent_id" =' in one["sql"]]
    assert len(many) == 2
    assert all("LIMIT" in sql for sql in many)
    assert "event-119" in text
    assert "event-020" in text
    assert "event-019" not in text
    assert "Only the newest 100 are shown." in text
    assert "and more" in text


@pytest.mark.parametrize(
    "place", ["error", "traceback", "result", "worker", "task", "key", "queue", "payload", "event"]
)
def test_markup_is_shown_and_not_run(boss: Client, place: str) -> None:
    evil = "<script>alert(1)</script>"
    columns: dict[str, Any] = {} if place == "event" else {place: evil}
    if place == "payload":
        columns["payload"] = json.dumps([[evil], {evil: evil}, {}]).encode()
    job = make(status=Status.FAILED, **columns)
    if place == "event":
        JobEvent.objects.create(job=job, kind="failure", actor=evil, detail=evil, traceback=evil)
    pages = [
        page_of(boss, job),
        boss.get(reverse(LIST)).content.decode(),
        boss.get(url("requeue", job)).content.decode(),
    ]
    assert all(evil not in page for page in pages)
    assert any("&lt;script&gt;" in page for page in pages)


@pytest.mark.parametrize(
    ("columns", "note"),
    [
        ({"payload": b"\xff\x00 not json"}, "Can&#x27;t be decoded"),
        ({"payload": b"[]"}, "Can&#x27;t be decoded"),
        ({"payload": b"7"}, "Can&#x27;t be decoded"),
        (
            {"content_type": "application/x-python-serialize", "payload": b"cos\nsystem\n."},
            "pickled payload, not loaded",
        ),
        ({"content_type": "application/x-unheard-of"}, "Not shown (application/x-unheard-of is decoded by"),
        ({"content_type": "", "content_encoding": "", "envelope": "no json"}, "Not shown (unknown type is"),
        ({"headers": {"compression": "gzip"}}, "Can&#x27;t be decoded"),
        ({"payload": b"[" * 100_000}, "Can&#x27;t be decoded"),
        ({"payload": b'[["' + b"x" * 300_000 + b'"], {}, {}]'}, "Too large to show (more than 262144 bytes)"),
        ({"headers": {"compression": "x-own"}}, "x-own is decompressed by workers only"),
    ],
)
def test_a_body_that_cant_be_decoded_is_shown_as_such(boss: Client, columns: dict[str, Any], note: str) -> None:
    compression.register(bytes, bytes, "x-own")
    assert note in page_of(boss, make(status=Status.FAILED, reason=Reason.PARKED, **columns))


_BOMB = b'[["' + b"x" * 50_000_000 + b'"], {}, {}]'

_LAUGHS = (
    "- [" + "".join(f"&a{n} [{f'*a{n - 1},' * 10}], " for n in range(1, 10)).replace("*a0", "ha") + "]\n- {}\n- {}"
)


@pytest.mark.parametrize("how", ["zlib", "bzip2", "lzma"])
def test_a_compressed_bomb_is_not_unpacked_for_a_page(boss: Client, how: str) -> None:
    body, kind = compression.compress(_BOMB, how)
    job = make(payload=body, headers={"compression": kind})
    assert len(body) < 60_000
    tracemalloc.start()
    text = page_of(boss, job)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "Too large to show (more than 262144 bytes)" in text
    assert most < 20_000_000


def test_aliases_of_yaml_are_not_written_out_for_a_page(boss: Client) -> None:
    pytest.importorskip("yaml")
    text = page_of(boss, make(payload=_LAUGHS.encode(), content_type="application/x-yaml"))
    assert "Too large to show" in text
    endless = page_of(boss, make(payload=b"- [&a [*a]]\n- {}\n- {}", content_type="application/x-yaml"))
    assert "Too large to show" in endless
    numbers = b"- [&a " + b"7" * 4000 + b", *a" * 200 + b"]\n- {}\n- {}"
    assert "Too large to show" in page_of(boss, make(payload=numbers, content_type="application/x-yaml"))


@pytest.mark.parametrize("key", ["<<", "!!merge x", "!<tag:yaml.org,2002:%6derge> x"])
def test_merged_mappings_of_yaml_are_not_written_out_for_a_page(boss: Client, key: str) -> None:
    """PyYAML before 6.0.4 copies them while it reads."""
    pytest.importorskip("yaml")
    levels = "".join(f"  a{n}: &a{n} {{{key}: [{', '.join([f'*a{n - 1}'] * 9)}]}}\n" for n in range(1, 4))
    body = f"- []\n- a0: &a0 {{k: v}}\n{levels}- {{}}"
    text = page_of(boss, make(payload=body.encode(), content_type="application/x-yaml"))
    assert "Not shown (YAML&#x27;s merge keys are read by workers only)" in text


def test_lone_surrogates_in_names_and_values_do_not_break_the_page(boss: Client) -> None:
    body = rb'[["\ud800"], {"name\udfff": "\ud800"}, {}]'
    assert "name\\udfff = " in page_of(boss, make(payload=body))
    assert "\\ud800" in page_of(boss, make(sensitive=True, headers={"argsrepr": "\ud800", "kwargsrepr": "{}"}))


def test_a_pickled_body_is_never_loaded(boss: Client, tmp_path: Any) -> None:
    witness = tmp_path / "ran"
    body = f"cos\nsystem\n(S'touch {witness}'\ntR.".encode()
    page_of(boss, make(content_type="application/x-python-serialize", content_encoding="binary", payload=body))
    assert not witness.exists()


def test_an_id_that_is_none_or_pruned_leads_back_with_a_word(boss: Client) -> None:
    for missing in ("nonsense", str(uuid.uuid4())):
        for name in ("change", "requeue", "cancel"):
            response = boss.get(reverse(f"admin:reliable_jobs_job_{name}", args=[missing]), follow=True)
            assert response.status_code == 200
            assert missing in said(response)


# --- sensitive --------------------------------------------------------------------------------------------------------


def test_a_sensitive_jobs_page_shows_the_masked_texts_of_its_message(boss: Client) -> None:
    from tests.testapp.tasks import login

    with override_settings(RELIABLE_JOBS={"DISPATCH": "relay"}):
        job = Job.objects.get(pk=login.delay("Ada", password="hunter2secret").id)
    job.result = '"welcome"'
    job.save()
    text = page_of(boss, job)
    assert "hunter2secret" not in text
    assert "Ada" in text
    assert "[hidden]" in text
    assert "welcome" in text


def test_a_result_that_holds_a_sensitive_argument_is_hidden_with_it(boss: Client) -> None:
    from tests.testapp.tasks import login

    with override_settings(RELIABLE_JOBS={"DISPATCH": "relay"}):
        job = Job.objects.get(pk=login.delay("Ada", password='hun"ter\u00fc').id)
    job.result = json.dumps({"said": ['the password was hun"ter\u00fc']})
    job.save()
    text = page_of(boss, job)
    assert "ter\\u00fc" not in text
    assert "may hold a sensitive argument" in text


def test_a_sensitive_job_whose_code_is_gone_shows_no_result(boss: Client) -> None:
    job = make(
        task="gone.task",
        sensitive=True,
        headers={"argsrepr": "([hidden],)", "kwargsrepr": "{}"},
        status=Status.SUCCEEDED,
        result='"hunter2secret"',
    )
    text = page_of(boss, job)
    assert "hunter2secret" not in text
    assert "([hidden],)" in text


def test_a_message_from_elsewhere_for_a_sensitive_task_is_masked(boss: Client) -> None:
    name = "tests.testapp.tasks.login"
    clear = {"task": name, "argsrepr": "('Ada', 'hunter2secret')", "kwargsrepr": "{}"}
    job = make(task=name, headers=clear, payload=json.dumps([["Ada", "hunter2secret"], {}, {}]).encode())
    text = page_of(boss, job)
    assert "hunter2secret" not in text
    assert "[hidden]" in text
    assert "hunter2secret" not in page_of(boss, make(task=name, headers=clear, payload=b"hunter2secret undecodable"))


def test_why_a_job_ran_twice_is_said_with_what_became_of_its_effects(boss: Client) -> None:
    once = make(status=Status.FAILED, error="ValueError: no")
    JobEvent.objects.create(job=once, kind=EventKind.FAILURE, final=True, detail="ValueError: no")
    assert 'id="rj-reruns"' not in page_of(boss, once)
    job = make(status=Status.SUCCEEDED)
    causes = [
        (EventKind.FAILURE, {"error_class": "ValueError", "actor": "celery@a"}, "an attempt failed at "),
        (EventKind.CRASH, {}, "its process died at "),
        (EventKind.INTERRUPTION, {}, "its run was interrupted at "),
        (EventKind.RESCUE, {}, "taken back from its worker at "),
        (EventKind.REQUEUE, {"actor": "Ada"}, "requeued by Ada at "),
    ]
    for kind, columns, _ in causes:
        JobEvent.objects.create(job=job, kind=kind, final=None if kind == EventKind.REQUEUE else False, **columns)
    text = page_of(boss, job)
    said = text[text.index('id="rj-reruns"') :].partition("</p>")[0]
    places = [said.find(words) for _, _, words in causes]
    assert places[0] == -1, "the latest four"
    assert places[1:] == sorted(places[1:])
    assert min(places[1:]) > said.index("Why it runs more than once: … ")
    assert "was rolled back" in said
    own = make(status=Status.SUCCEEDED, task="tests.testapp.tasks.slow_outside")
    JobEvent.objects.create(job=own, kind=EventKind.FAILURE, final=False, error_class="ValueError")
    assert "(ValueError). It is not atomic" in page_of(boss, own)
