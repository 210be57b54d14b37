"""A job's page shows its workflow: what came before, the parts of its group, and what is to follow."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator

import pytest
from celery import chain, chord, group
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from reliable_jobs.admin import tree
from reliable_jobs.admin.tree import Node
from reliable_jobs.models import Job, JobGroup
from reliable_jobs.status import Status
from tests.admin import pages
from tests.admin.pages import listed, make, page_of
from tests.support import inprocess
from tests.support.inprocess import InProcess
from tests.workflow.chords import body, fails, no_backend, part, wrap

pytestmark = pytest.mark.django_db
jobs = inprocess.jobs
boss = pages.boss


@pytest.fixture(autouse=True)
def _no_backend() -> Iterator[None]:
    with no_backend():
        yield


def drawn(node: Node | None, depth: int = 0) -> list[str]:
    """The tree as lines of text, without ids."""
    if node is None:
        return []
    name = node.name.removeprefix("test_chords.")
    line = f"{'  ' * depth}{name} {node.label}{' *' * node.here}".rstrip()
    note = re.sub(r"[0-9a-f-]{36}", "ID", node.note)
    lines = [f"{line}: {note}" if note else line]
    for child in node.children:
        lines += drawn(child, depth + 1)
    return lines


def tree_of(task: str, **columns: object) -> list[str]:
    job = Job.objects.filter(task=f"test_chords.{task}", **columns).order_by("created_at", "place").first()
    assert job is not None
    return drawn(tree.workflow_of(job))


def test_a_job_on_its_own_has_no_tree(jobs: InProcess) -> None:
    part.delay(1)
    assert tree_of("part") == []
    jobs.work()
    assert tree_of("part") == []


def test_a_chain_shows_the_steps_to_come_and_those_that_were(jobs: InProcess) -> None:
    (part.s(1) | wrap.s() | body.s()).apply_async()
    assert tree_of("part") == ["part waiting *", "  wrap no row: not written yet", "  body no row: not written yet"]
    jobs.deliver(jobs.take()[0])
    assert tree_of("wrap") == ["part succeeded", "  wrap waiting *", "    body no row: not written yet"]
    jobs.work()
    assert tree_of("wrap") == ["part succeeded", "  wrap succeeded *", "    body succeeded"]


def test_a_chord_shows_what_it_waits_for(jobs: InProcess) -> None:
    chord([part.s(1), part.s(2) | wrap.s()], body.s()).apply_async()
    assert tree_of("part") == [
        "chord of 2 open: waits for 2; 2 × waiting",
        "  part waiting *",
        "  part waiting",
        "    wrap no row: not written yet",
        "  then",
        "    body no row: not written yet",
    ]
    jobs.work()
    ended = [
        "chord of 2 done: 2 × succeeded",
        "  part succeeded *",
        "  wrap succeeded",
        "  then",
        "    body succeeded",
    ]
    assert tree_of("part", owes__isnull=False) == ended
    # From every job of it the same is seen.
    for job in Job.objects.all():
        lines = drawn(tree.workflow_of(job))
        assert [line.removesuffix(" *") for line in lines] == [line.removesuffix(" *") for line in ended], job


def test_a_failed_chord_names_the_part(jobs: InProcess) -> None:
    chord([part.s(1), fails.s()], body.s() | wrap.s()).apply_async()
    jobs.work()
    lines = tree_of("wrap")
    assert lines[0] == "chord of 2 failed: 1 × succeeded, 1 × failed; Dependency ID raised ValueError: no"
    assert lines[1:3] == ["  fails failed: ValueError: no", "  part succeeded"]
    assert lines[3] == "  then"
    assert lines[4].startswith("    body failed: Dependency ID raised")
    assert lines[5].startswith("    wrap failed *: Dependency ID raised")


def test_chords_in_chords_stand_inside_each_other(jobs: InProcess) -> None:
    chord([chord([part.s(1), part.s(2)], wrap.s()), part.s(3)], body.s()).apply_async()
    assert tree_of("part", place="000000") == [
        "chord of 2 open: waits for 2; 1 × waiting, 1 open chord",
        "  chord of 2 open: waits for 2; 2 × waiting",
        "    part waiting *",
        "    part waiting",
        "    then",
        "      wrap no row: not written yet",
        "  part waiting",
        "  then",
        "    body no row: not written yet",
    ]
    jobs.work()
    assert tree_of("body") == [
        "chord of 2 done: 2 × succeeded",
        "  chord of 2 done: 2 × succeeded",
        "    part succeeded",
        "    part succeeded",
        "    then",
        "      wrap succeeded",
        "  part succeeded",
        "  then",
        "    body succeeded *",
    ]


def test_a_chord_that_a_job_starts_stands_below_it(jobs: InProcess) -> None:
    chain(part.s(1), group(wrap.s(), wrap.s()), body.s()).apply_async()
    jobs.work()
    assert tree_of("body") == [
        "part succeeded",
        "  chord of 2 done: 2 × succeeded",
        "    wrap succeeded",
        "    wrap succeeded",
        "    then",
        "      body succeeded *",
    ]


def test_a_parent_without_a_row_is_named(boss: Client) -> None:
    gone = uuid.uuid4()
    text = page_of(boss, make(parent_id=gone))
    assert f"{gone}" in text
    assert "pruned, or its task is not a reliable one" in text


def test_rows_in_a_circle_are_shown_once() -> None:
    one, other = make(), make()
    Job.objects.filter(pk=one.pk).update(parent_id=other.pk)
    Job.objects.filter(pk=other.pk).update(parent_id=one.pk)
    found = tree.workflow_of(Job.objects.get(pk=one.pk))
    assert len(drawn(found)) == 2


@pytest.mark.slow
def test_ten_thousand_parts_cost_no_more_queries_than_ten(boss: Client) -> None:
    made, sizes = [], (10, 10_000)
    for size in sizes:
        group_id = uuid.uuid4()
        JobGroup.objects.create(id=group_id, body='{"task": "shop.report", "args": []}', size=size)
        template = make(owes=group_id, place="000000", status=Status.FAILED, error="ValueError: the one that failed")
        names = {f.attname for f in Job._meta.concrete_fields} - {"id", "place", "status", "error", "created_at"}
        columns = {name: getattr(template, name) for name in names}
        Job.objects.bulk_create(
            Job(**columns, place=f"{number:06x}", status=Status.WAITING if number % 2 else Status.SUCCEEDED)
            for number in range(1, size)
        )
        made.append(Job.objects.filter(owes=group_id, place=f"{size - 1:06x}").get())
    queries, pages = [], []
    page_of(boss, made[0])  # Django keeps some answers
    for job in made:
        with CaptureQueriesContext(connection) as captured:
            pages.append(page_of(boss, job))
        queries.append(len(captured))
    assert queries[0] == queries[1]
    assert "chord of 10,000" in pages[1]
    assert "1 × failed" in pages[1]
    assert "5,000 × waiting" in pages[1]
    assert "waits for 5,000" in pages[1]
    assert "the one that failed" in pages[1]  # what holds it up is shown, wherever it stands
    assert "9,980 more" in pages[1]
    found = re.search(rf'href="{reverse("admin:reliable_jobs_job_changelist")}(\?q=group:[0-9a-f-]+)"', pages[1])
    assert found is not None
    assert len(listed(boss, found[1])) == 100
    assert pages[1].count("(this job)") == 1


def _follows(embed: str, **columns: object) -> dict[str, object]:
    return {"payload": f"[[], {{}}, {embed}]".encode(), **columns}


YAML = "application/x-yaml"
ODD = {
    "no JSON": {"payload": b"\xff"},
    "no list": {"payload": b"7"},
    "pickle": {"payload": b"cos\nsystem\n.", "content_type": "application/x-python-serialize"},
    "a type that nobody knows": {"content_type": "application/x-unheard-of"},
    "no envelope": {"envelope": "no json"},
    "compressed, and is not": {"headers": {"compression": "application/x-gzip"}},
    "a deep envelope": {"envelope": "[" * 100_000},
    "a chain of numbers": _follows('{"chain": [1]}'),
    "a chain that is none": _follows('{"chain": 7, "callbacks": {"a": 1}}'),
    "a name that is no text": _follows('{"chain": [{"task": "\\ud800"}]}'),
    "a deep chain": _follows(
        '{"chain": [' + '{"subtask_type": "chord", "kwargs": {"body": ' * 3000 + "1" + "}}" * 3000 + "]}"
    ),
    "a bomb of aliases": {
        "payload": (
            "- []\n- {}\n-\n  a0: &a0 {task: x}\n"
            + "".join(
                f"  a{n}: &a{n} {{subtask_type: group, kwargs: {{tasks: [{', '.join([f'*a{n - 1}'] * 10)}]}}}}\n"
                for n in range(1, 9)
            )
            + "  chain: [*a8]"
        ).encode(),
        "content_type": YAML,
    },
    "an alias in itself": {
        "payload": b"- []\n- {}\n- chain: [&g {subtask_type: group, kwargs: {tasks: [*g]}}]",
        "content_type": YAML,
    },
}


@pytest.mark.parametrize("what", ODD)
def test_a_job_that_cant_be_read_has_its_page_and_its_tree(boss: Client, what: str) -> None:
    group_id = uuid.uuid4()
    JobGroup.objects.create(id=group_id, body='{"task": "shop.report", "args": []}')
    text = page_of(boss, make(owes=group_id, **ODD[what]))
    assert "chord of 1" in text
    assert "shop.report" in text


@pytest.mark.parametrize("body", ["", "no json", "7", "[]", '{"kwargs": 1, "subtask_type": "chain"}', "[" * 100_000])
def test_a_group_whose_body_cant_be_read_shows_its_parts(boss: Client, body: str) -> None:
    group_id = uuid.uuid4()
    JobGroup.objects.create(id=group_id, body=body)
    assert "chord of 1" in page_of(boss, make(owes=group_id))
