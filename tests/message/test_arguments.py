"""Arguments arrive as they were given, or the call says what to pass instead."""

from __future__ import annotations

import datetime
import decimal
import json
import uuid
from typing import Any

import pytest
from django.test import override_settings

from reliable_jobs.errors import InvalidOption, JobTooLarge, UnserialisableArguments
from reliable_jobs.message.decode import arguments, headers_of
from reliable_jobs.models import Job
from tests.message.rendered import echo, row_of
from tests.support import inprocess
from tests.support.inprocess import InProcess
from tests.testapp import tasks
from tests.testapp.models import Effect

rows = inprocess.rows
jobs = inprocess.jobs

VALUES = [
    None,
    True,
    0,
    -(2**63),
    2**200,
    1.5,
    "",
    "ä \u2028 😀",
    "a\u0000b",
    [],
    {"a": [1, {"b": None}]},
    uuid.UUID("12345678-1234-5678-1234-567812345678"),
    decimal.Decimal("1.10"),
    datetime.datetime(2026, 1, 2, 3, 4, 5, 6),
    datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.timezone.utc),
    datetime.date(2026, 1, 2),
    datetime.time(3, 4, 5),
]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_an_argument_comes_back_as_it_was(rows: InProcess, value: Any) -> None:
    assert arguments(row_of(echo.delay(value, keyword=value))) == ([value], {"keyword": value})


def test_a_nul_character_goes_all_the_way_through_a_run(jobs: InProcess) -> None:
    job = jobs.run(tasks.add, "a\u0000", "b\u0000")
    assert job.status == "succeeded", job.error
    assert json.loads(job.result) == "a\u0000b\u0000"


@pytest.mark.parametrize("serializer", ["msgpack", "yaml"])
def test_another_registered_serialiser_is_kept_as_it_wrote(rows: InProcess, serializer: str) -> None:
    pytest.importorskip(serializer)
    row = row_of(echo.apply_async(("ä", 1), {"x": [1, 2]}, serializer=serializer))
    assert serializer in row.content_type
    assert arguments(row) == (["ä", 1], {"x": [1, 2]})


@pytest.mark.parametrize("compression", ["zlib", "bzip2", "lzma"])
def test_a_compressed_body_is_compressed_once_and_read_again(rows: InProcess, compression: str) -> None:
    row = row_of(echo.apply_async(("x" * 10_000,), compression=compression))
    assert len(bytes(row.payload)) < 2000
    assert headers_of(row)["compression"]
    assert arguments(row) == (["x" * 10_000], {})


def test_a_compressed_job_runs(jobs: InProcess) -> None:
    result = tasks.effect.apply_async(("compressed",), compression="zlib")
    jobs.work()
    assert jobs.row(result).status == "succeeded"
    assert jobs.effects("compressed") == 1


@pytest.mark.parametrize("serializer", ["pickle", "application/x-python-serialize"])
def test_pickle_is_refused_naming_what_to_use(rows: InProcess, serializer: str) -> None:
    with pytest.raises(InvalidOption, match=r"pickle serializer is refused.*Use json"):
        echo.apply_async((1,), serializer=serializer)
    assert not Job.objects.exists()


def test_a_pickled_row_is_never_loaded() -> None:
    row = Job(payload=b"cos\nsystem\n(S'true'\ntR.", content_type="application/x-python-serialize", envelope="{}")
    with pytest.raises(ValueError, match="not loaded"):
        arguments(row)


def test_an_unknown_serialiser_says_so(rows: InProcess) -> None:
    with pytest.raises(InvalidOption, match=r"serializer 'jsn'.*json"):
        echo.apply_async((1,), serializer="jsn")


@pytest.mark.parametrize(
    ("args", "kwargs", "name", "kind"),
    [
        ((1, Effect(pk=5)), {}, "argument 2", "Effect"),
        ((), {"row": Effect(pk=5)}, "row", "Effect"),
        ((), {"row": {"deep": [{"in": (Effect(pk=5),)}]}}, "row", "Effect"),
        (([Effect(pk=5)],), {}, "argument 1", "Effect"),
    ],
)
def test_a_model_instance_is_named_with_what_to_pass(
    rows: InProcess, args: Any, kwargs: Any, name: str, kind: str
) -> None:
    with pytest.raises(UnserialisableArguments) as caught:
        echo.apply_async(args, kwargs)
    text = str(caught.value)
    assert text.startswith(f"test_message.echo: {name} holds a {kind}")
    assert ".pk" in text
    assert not Job.objects.exists()


def test_a_queryset_is_named_with_what_to_pass(rows: InProcess) -> None:
    with pytest.raises(UnserialisableArguments, match="values_list") as caught:
        echo.delay(Effect.objects.all())
    assert "argument 1 holds a QuerySet" in str(caught.value)


@pytest.mark.parametrize(
    "value", [object(), lambda: None, open, 1j, [object()]], ids=["object", "lambda", "builtin", "complex", "nested"]
)
def test_a_value_that_json_does_not_know_is_named(rows: InProcess, value: Any) -> None:
    with pytest.raises(UnserialisableArguments, match=r"test_message\.echo: thing \("):
        echo.delay(1, thing=value)
    assert not Job.objects.exists()


def test_bytes_come_back_as_kombus_json_brings_them(rows: InProcess) -> None:
    assert arguments(row_of(echo.delay(1, thing=b"\xff\xfe"))) == ([1], {"thing": b"\xff\xfe"})


def test_a_circular_argument_is_an_error_and_no_endless_loop(rows: InProcess) -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(UnserialisableArguments, match="argument 1"):
        echo.delay(loop)


def test_what_can_not_be_serialised_is_both_a_type_and_a_value_error(rows: InProcess) -> None:
    for kind in (TypeError, ValueError):
        with pytest.raises(kind):
            echo.delay(object())


@override_settings(RELIABLE_JOBS={"MAX_PAYLOAD_BYTES": 1000})
def test_a_call_that_is_too_large_names_its_largest_part(rows: InProcess) -> None:
    with pytest.raises(JobTooLarge) as caught:
        echo.delay("small", ["y" * 50], photo="x" * 2000)
    text = str(caught.value)
    assert "the limit is 1000" in text
    assert "the largest part is photo" in text
    assert not Job.objects.exists()


@override_settings(RELIABLE_JOBS={"MAX_PAYLOAD_BYTES": 1000})
def test_the_limit_counts_what_is_serialised_before_compression(rows: InProcess) -> None:
    with pytest.raises(JobTooLarge, match="argument 1"):
        echo.apply_async(("x" * 2000,), compression="zlib")


@override_settings(RELIABLE_JOBS={"MAX_PAYLOAD_BYTES": 200})
def test_a_large_callback_is_no_argument_but_too_large_all_the_same(rows: InProcess) -> None:
    with pytest.raises(JobTooLarge, match="the largest part is"):
        echo.apply_async((), link=echo.s("x" * 500))


@pytest.mark.parametrize(
    "headers", [{"x": object()}, {"x": {1, 2}}, {"x": 2**64}, {"x" * 300: 1}], ids=["object", "set", "big", "long name"]
)
def test_a_header_that_can_not_travel_is_refused_at_the_call(rows: InProcess, headers: dict[str, Any]) -> None:
    with pytest.raises(UnserialisableArguments, match="header or publish option can't travel"):
        echo.apply_async((), headers=headers)
    assert not Job.objects.exists()
