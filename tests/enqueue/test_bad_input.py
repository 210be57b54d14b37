"""Whatever a caller passes, a settings file says or a hand has written into the table: a clear error at the call with
nothing written, or a job that can be read again; and a sweep or a page never stumbles."""

from __future__ import annotations

import contextlib
import datetime
import json
import uuid
from typing import Any

import pytest
from celery.exceptions import InvalidTaskError
from django.contrib.auth.models import User
from django.core.exceptions import ImproperlyConfigured
from django.db import transaction
from django.test import Client, override_settings
from django.urls import reverse
from django.utils.connection import ConnectionDoesNotExist
from hypothesis import Phase, given
from hypothesis import strategies as st
from kombu.exceptions import KombuError
from kombu.utils.json import dumps, loads

from reliable_jobs.conf import Settings, load
from reliable_jobs.errors import EnqueueError, InvalidOption, UnserialisableArguments
from reliable_jobs.message import decode, row_to_message
from reliable_jobs.models import Job
from tests.celery_app import app
from tests.support import inprocess
from tests.support.generated import examples
from tests.support.inprocess import InProcess
from tests.testapp import tasks

rows = inprocess.rows


def quick(count: int = 100) -> Any:
    return examples(count, phases=[Phase.generate])


texts = st.one_of(
    st.text(max_size=20),
    st.text(st.characters(categories=["Cs", "Cc", "Ll"]), max_size=5),
    st.sampled_from(["\x00", "\ud800", "\udfff\ud800", "<script>", "x" * 300, "\u2028"]),
)
times = st.one_of(
    st.datetimes(),
    st.datetimes(timezones=st.timezones()),
    st.sampled_from(
        [
            datetime.datetime.max,
            datetime.datetime.min,
            datetime.datetime.max.replace(tzinfo=datetime.timezone(datetime.timedelta(hours=-14))),
            datetime.datetime.min.replace(tzinfo=datetime.timezone(datetime.timedelta(hours=14))),
        ]
    ),
)
numbers = st.one_of(
    st.integers(-(10**30), 10**30),
    st.floats(),
    st.decimals(allow_nan=False),
    st.complex_numbers(),
    st.fractions(),
    st.sampled_from([-(2**63), 2**63, True, -0.0]),
)
leaves = st.one_of(
    st.none(),
    st.booleans(),
    numbers,
    texts,
    times,
    st.dates(),
    st.times(),
    st.timedeltas(),
    st.uuids(),
    st.binary(max_size=10),
    st.sampled_from([object(), int, len, ..., {1, 2}, frozenset("ab"), range(3), iter([1])]),
)


def nested(value: Any, depth: int) -> Any:
    for _ in range(depth):
        value = [value]
    return value


values = st.one_of(
    leaves,
    st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.lists(inner, max_size=3), st.dictionaries(st.one_of(texts, numbers, st.none()), inner, max_size=3)
        ),
        max_leaves=6,
    ),
    st.sampled_from([{"__type__": "datetime", "__value__": 1}, {"__type__": []}]),
)


#: What has no repr, so that Hypothesis could not show it where a test fails otherwise.
extremes = st.one_of(values, st.builds(lambda: 10**5000), st.builds(nested, st.just(1), st.sampled_from([100, 3000])))


def hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


def enqueue(call: Any) -> Job | None:
    """The row; None when the call was refused, with nothing written and in words that name the task."""
    before = set(Job.objects.values_list("pk", flat=True))
    try:
        with transaction.atomic():
            result = call()
    except (EnqueueError, TypeError) as error:
        said = str(error)
        assert any(name in said for name in ("tests.testapp.tasks", "add()")), said
        assert set(Job.objects.values_list("pk", flat=True)) == before
        return None
    return Job.objects.get(pk=result.id)


@quick()
@given(x=extremes, y=extremes, keyword=st.booleans(), plain=st.booleans())
def test_an_argument_is_refused_with_its_place_or_comes_back_unchanged(
    rows: InProcess, x: Any, y: Any, keyword: bool, plain: bool
) -> None:
    args, kwargs = ((x,), {"y": y}) if keyword else ((x, y), {})
    options = {} if plain else {"queue": rows.queue, "headers": {"tenant": "x"}}
    job = enqueue(lambda: tasks.add.apply_async(args, kwargs, **options))
    if job is not None:
        found = decode.arguments(job)
        assert dumps(found) == dumps(loads(dumps((list(args), kwargs))))


@quick()
@given(calls=st.lists(extremes, min_size=1, max_size=4))
def test_many_calls_are_refused_together_or_come_back_as_json_has_them(rows: InProcess, calls: list[Any]) -> None:
    before = Job.objects.count()
    try:
        with transaction.atomic():
            ids = tasks.add.bulk_delay((value, 1) for value in calls)
    except (EnqueueError, TypeError) as error:
        said = str(error)
        assert "tests.testapp.tasks.add" in said
        assert Job.objects.count() == before
        return
    for job_id, value in zip(ids, calls, strict=True):
        assert dumps(decode.arguments(Job.objects.get(pk=job_id))) == dumps(loads(dumps(([value, 1], {}))))


#: Celery looks at some of its options itself.
CELERYS_OWN = (TypeError, ValueError, AttributeError, LookupError)
OPTIONS = (
    *(
        "countdown",
        "eta",
        "expires",
        "priority",
        "queue",
        "routing_key",
        "exchange",
        "serializer",
        "compression",
        "key",
    ),
    *("task_id", "headers", "shadow", "using", "time_limit", "soft_time_limit", "retries", "group_id", "parent_id"),
    *(
        "root_id",
        "ignore_result",
        "argsrepr",
        "kwargsrepr",
        "delivery_mode",
        "reply_to",
        "link",
        "link_error",
        "stamps",
    ),
    *("expiration", "user_id", "app_id", "content_encoding"),
)


@quick(400)
@given(options=st.dictionaries(st.sampled_from(OPTIONS), values, min_size=1, max_size=2))
def test_an_option_is_refused_by_its_name_or_its_row_can_be_sent(rows: InProcess, options: dict[str, Any]) -> None:
    before = set(Job.objects.values_list("pk", flat=True))
    try:
        with transaction.atomic():
            result = tasks.add.apply_async((1, 2), **options)
    except (EnqueueError, ConnectionDoesNotExist, *CELERYS_OWN):
        assert set(Job.objects.values_list("pk", flat=True)) == before
    else:
        job = rows.row(result)
        assert decode.arguments(job) == ([1, 2], {})
        going = row_to_message.outgoing(job, "default")
        assert going.headers["task"] == tasks.add.name


@pytest.mark.parametrize("plain", [True, False], ids=["by a template", "by Celery"])
@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"__type__": "datetime", "__value__": 1}, "the key '__type__'"),
        (10**5000, r"4300( digits|\))"),
        (nested(1, 3000), "recursion"),
    ],
    ids=["a dict like kombu's own", "a huge number", "lists in lists"],
)
def test_what_no_worker_could_read_is_refused_at_the_call(rows: InProcess, value: Any, words: str, plain: bool) -> None:
    tasks.add.delay(1, 2)  # for the template
    with contextlib.suppress(RecursionError):
        if words == "recursion" and json.loads(json.dumps(value)):
            return  # this Python's C stack takes it (3.12 and later)
    with pytest.raises(UnserialisableArguments, match=words) as refused:
        tasks.add.apply_async((value, 1), **({} if plain else {"queue": rows.queue, "headers": {"tenant": "x"}}))
    assert "tests.testapp.tasks.add" in str(refused.value)


@pytest.mark.parametrize("priority", [-1, 256, 10**6, 1.5, "9", True, uuid.UUID(int=1)])
def test_a_priority_that_no_message_has_is_refused_at_the_call(rows: InProcess, priority: Any) -> None:
    with pytest.raises(InvalidOption, match="priority="):
        tasks.add.apply_async((1, 2), priority=priority)


@pytest.mark.parametrize("queue", ["x" * 256, "é" * 128, "a\0b", "\ud800"])
def test_a_queue_that_no_broker_has_is_refused_at_the_call(rows: InProcess, queue: str) -> None:
    with pytest.raises(InvalidOption, match="queue="):
        tasks.add.apply_async((1, 2), queue=queue)


setting_names = st.one_of(
    st.sampled_from([field.name for field in Settings.__dataclass_fields__.values()]), st.text(max_size=5), leaves
)


@quick()
@given(given_settings=st.one_of(st.dictionaries(setting_names.filter(hashable), values, max_size=3), leaves))
def test_settings_are_taken_or_refused_by_name(given_settings: Any) -> None:
    with override_settings(RELIABLE_JOBS=given_settings):
        try:
            load()
        except ImproperlyConfigured as error:
            said = str(error)
            assert "RELIABLE_JOBS" in said


FIELDS = {
    "status": st.sampled_from(["", "done", "WAITING", "\u00e9"]),
    "reason": st.sampled_from(["because", "nobody knows"]),
    "sends": st.sampled_from([0, 1, 2, 40, 2**31 - 1]),
    "check_at": st.one_of(st.none(), times),
    "due_at": times,
    "lease_at": st.one_of(st.none(), times),
    "deadline_at": st.one_of(st.none(), times),
    "expires_at": st.one_of(st.none(), times),
    "started_at": st.one_of(st.none(), times),
    "finished_at": st.one_of(st.none(), times),
    "created_at": times,
    "task": st.sampled_from(["", "nobody.knows", "tests.testapp.tasks.add", "<b>", "x" * 255]),
    "queue": st.sampled_from(["", "<i>", "x" * 255]),
    "priority": st.sampled_from([None, -1, 0, 9, 255, 300]),
    "payload": st.one_of(
        st.binary(max_size=20), st.sampled_from([b"", b"[", b"[1, 2]", b"null", b"[[],[],[]]", b"[1,2,3]"])
    ),
    "content_type": st.sampled_from(
        ["", "application/json", "application/x-python-serialize", "text/plain", "nonsense"]
    ),
    "content_encoding": st.sampled_from(["", "utf-8", "binary", "utf-16", "nonsense"]),
    "envelope": st.sampled_from(
        ["", "{", "null", "[]", "{}", '{"headers": 1}', '{"headers": {}}', '{"headers": {"compression": "x"}}']
        + [
            json.dumps({"v": 99, "exchange": "", "routing_key": "", "headers": {}, "properties": p})
            for p in ({}, 1, None)
        ]
        + [
            json.dumps(
                {"v": 1, "exchange": 1, "routing_key": None, "headers": {"id": 1}, "properties": {"priority": "x"}}
            )
        ]
    ),
    "key": st.sampled_from([None, "", "k"]),
    "result": st.sampled_from([None, "", "{", "null", "NaN"]),
    "error": st.sampled_from(["", "<script>alert(1)</script>"]),
    "worker": st.sampled_from(["", "x pid 1 #2", "<b>"]),
    "crashes": st.sampled_from([0, 1, 1000]),
    "failures": st.sampled_from([0, 1000]),
    "root_id": st.sampled_from([None, uuid.UUID(int=1)]),
    "parent_id": st.sampled_from([None, uuid.UUID(int=1)]),
}


def aware(value: Any) -> Any:
    """As the table could hold it."""
    if not isinstance(value, datetime.datetime):
        return value
    return min(max(value.replace(tzinfo=datetime.timezone.utc), _FIRST), _LAST)


_FIRST = datetime.datetime(1, 1, 3, tzinfo=datetime.timezone.utc)
_LAST = datetime.datetime(9999, 12, 29, tzinfo=datetime.timezone.utc)


@quick(30)
@given(columns=st.fixed_dictionaries({}, optional=FIELDS), running=st.booleans())
def test_a_row_written_by_hand_stops_no_sweep_no_neighbour_and_no_page(
    rows: InProcess, columns: dict[str, Any], running: bool
) -> None:
    with transaction.atomic():
        odd, good = tasks.add.delay(1, 2), tasks.add.delay(3, 4)
        Job.objects.update(sends=0)
        values = {name: aware(value) for name, value in columns.items()}
        if running:
            values.setdefault("status", "running")
            values.setdefault("token", uuid.uuid4())
        Job.objects.filter(pk=odd.id).update(**values)
        rows.sweep()
        rows.sweep()
        assert rows.row(good).sends == 1
        for sent in (sent for sent in rows.take() if sent.headers["task"] in app.tasks):
            with contextlib.suppress(
                KombuError, InvalidTaskError, TypeError, ValueError
            ):  # of which the consumer makes a parked job
                rows.deliver(sent)
        client = Client()
        client.force_login(User.objects.get_or_create(username="Grace", is_staff=True, is_superuser=True)[0])
        assert client.get(reverse("admin:reliable_jobs_job_changelist")).status_code == 200
        for job in (odd, good):
            assert client.get(reverse("admin:reliable_jobs_job_change", args=[job.id])).status_code == 200
        transaction.set_rollback(True)
