"""The random-fault campaign (``python -m qa.chaos``) in short, and that its checker can fail."""

from __future__ import annotations

import dataclasses
import fnmatch
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qa.chaos import faults
from qa.chaos.checker import MOST_POISON_STARTS, Evidence, Verdict, judge
from qa.chaos.sites import SITES
from tests.support.harness import ROOT
from tests.support.private_servers import PrivatePostgres, PrivateRabbitMQ, ServerMissing

JOB = "11111111-1111-1111-1111-111111111111"
CALL = "22222222-2222-2222-2222-222222222222"
BAD = "33333333-3333-3333-3333-333333333333"
UNDONE = "44444444-4444-4444-4444-444444444444"


def expectation(job: str | None, ends: str = "succeeded", attempts: int = 0, **effects: list[int]) -> dict[str, Any]:
    return {"id": job, "ends": ends, "attempts": attempts, "effects": effects}


#: One order that went well, one that was rolled back, and a job that was to fail.
SOUND = Evidence(
    records=[
        {"what": "opens", "order": "a"},
        {
            "what": "intends",
            "order": "a",
            "jobs": [
                expectation(JOB, a=[1, 1]),
                expectation(CALL, **{"fenced:a": [1, 10]}),
                expectation(BAD, ends="failed"),
            ],
        },
        {"what": "committed", "order": "a", "took": 0.1, "dispatch": 0.01},
        {"what": "intends", "order": "b", "jobs": [expectation(UNDONE, b=[1, 1])]},
        {"what": "rolled back", "order": "b"},
        {"what": "publishes", "jobs": [JOB, CALL, BAD]},
        {"what": "starts", "job": JOB, "name": "a"},
        {"what": "external", "name": "fenced:a", "key": CALL},
    ],
    effects=[(1, "order:a", ""), (2, "a", JOB), (3, "fenced:a", "1")],
    jobs={
        JOB: ("book", "succeeded", "", 0, ""),
        CALL: ("call", "succeeded", "", 0, ""),
        BAD: ("fails", "failed", "error", 0, "ValueError"),
    },
    longest_dispatch=1.0,
)


def found(verdict: Verdict) -> set[tuple[str, str]]:
    return {(violation.promise, violation.what) for violation in verdict.violations}


def test_the_checker_is_content_with_what_is_sound() -> None:
    verdict = judge(SOUND)
    assert not verdict.violations
    assert verdict.figures["orders committed"] == 1
    assert verdict.figures["publishes per job, mean"] == 1.0


@pytest.mark.parametrize(
    ("effects", "wrong"),
    [
        ([(1, "order:a", ""), (3, "fenced:a", "1")], ("I2", "lost")),
        ([*SOUND.effects, (4, "a", JOB)], ("I3", "duplicate")),
        ([*SOUND.effects, (4, "b", JOB)], ("I1", "phantom")),
        ([*SOUND.effects, (4, "a/undone", JOB)], ("I1", "phantom")),
        ([*SOUND.effects, (4, "order:b", "")], ("I1", "phantom")),
        ([*SOUND.effects, (4, "order:never heard of", "")], ("I1", "phantom")),
        ([(2, "a", JOB), (3, "fenced:a", "1")], ("I1", "lost")),
        ([*SOUND.effects, (4, "fenced:a", "3"), (5, "fenced:a", "1")], ("I4", "stale run")),
    ],
    ids=[
        "an effect is lost",
        "an effect is doubled",
        "an effect of what was rolled back",
        "an effect of a run that failed",
        "an order that was rolled back is there",
        "an order that nobody intended is there",
        "a committed order is not there",
        "an earlier run commits after a later one",
    ],
)
def test_the_checker_sees_wrong_effects(effects: list[tuple[int, str, str]], wrong: tuple[str, str]) -> None:
    assert wrong in found(judge(dataclasses.replace(SOUND, effects=effects)))


@pytest.mark.parametrize(
    ("job", "row", "wrong"),
    [
        (JOB, ("book", "waiting", "", 0, ""), ("I2", "without a final state")),
        (JOB, ("book", "running", "", 0, ""), ("I2", "without a final state")),
        (JOB, ("book", "failed", "crash", 0, "3 starts"), ("I5", "healthy failed")),
        (JOB, ("book", "succeeded", "", 1, ""), ("I5", "attempt spent")),
        (JOB, None, ("I1", "lost")),
        (BAD, ("fails", "succeeded", "", 0, ""), ("I6", "poison not failed")),
        (BAD, ("fails", "failed", "", 0, ""), ("I7", "failed without a word")),
        ("of a body", ("book", "failed", "error", 0, "x"), ("I5", "healthy failed")),
        (UNDONE, ("book", "succeeded", "", 0, ""), ("I1", "phantom")),
    ],
)
def test_the_checker_sees_wrong_ends(job: str, row: Any, wrong: tuple[str, str]) -> None:
    jobs = {**SOUND.jobs, job: row}
    assert found(judge(dataclasses.replace(SOUND, jobs={k: v for k, v in jobs.items() if v}))) == {wrong}


def test_the_checker_sees_a_chord_that_nobody_decides() -> None:
    assert found(judge(dataclasses.replace(SOUND, open_groups=[JOB]))) == {("I2", "without a final state")}


@pytest.mark.parametrize(
    ("kills", "wrong"),
    [
        ([{"what": "kills", "pids": [1, 7]}, {"what": "starts", "pid": 7, "job": BAD, "name": "poison:b"}], set()),
        ([{"what": "kills", "pids": [1, 7]}, {"what": "kills", "pids": [1]}], {("I5", "healthy failed")}),
        ([{"what": "ends", "pid": 7, "job": JOB}, {"what": "kills", "pids": [7]}], {("I5", "healthy failed")}),
    ],
)
def test_a_job_whose_runs_the_campaign_killed_is_not_called_healthy(
    kills: list[dict[str, Any]], wrong: set[tuple[str, str]]
) -> None:
    """MariaDB's second seed: killed with its worker, by a poison job beside it, and with its worker again."""
    starts = {"what": "starts", "pid": 7, "job": JOB, "name": "a"}
    records = [*SOUND.records, starts, {"what": "kills", "pids": [7]}, starts, kills[0], starts, kills[1]]
    jobs = {**SOUND.jobs, JOB: ("book", "failed", "crash", 0, "3 starts")}
    assert found(judge(dataclasses.replace(SOUND, records=records, jobs=jobs))) == wrong


@pytest.mark.parametrize(
    ("records", "wrong"),
    [
        ([{"what": "committed", "order": "a", "took": 9.0, "dispatch": 8.0}], ("I9", "slow request")),
        (
            [{"what": "starts", "job": BAD, "name": "poison:a"}] * (MOST_POISON_STARTS + 1),
            ("I6", "loop not bounded"),
        ),
    ],
)
def test_the_checker_sees_what_the_ledger_tells(records: list[dict[str, Any]], wrong: tuple[str, str]) -> None:
    assert found(judge(dataclasses.replace(SOUND, records=[*SOUND.records, *records]))) == {wrong}


def test_a_keyed_job_of_two_orders_is_wanted_once() -> None:
    again = [
        {"what": "intends", "order": "c", "jobs": [expectation(JOB, a=[1, 1])]},
        {"what": "committed", "order": "c", "took": 0.1, "dispatch": 0.0},
    ]
    evidence = dataclasses.replace(
        SOUND, records=[*SOUND.records, *again], effects=[*SOUND.effects, (4, "order:c", "")]
    )
    assert not judge(evidence).violations


def test_an_order_whose_commit_nobody_saw_is_told_by_its_row() -> None:
    """The producer was killed at its COMMIT."""
    records = [record for record in SOUND.records if record["what"] != "committed"]
    assert not judge(dataclasses.replace(SOUND, records=records)).violations
    undone = dataclasses.replace(SOUND, records=records, effects=[], jobs={})
    assert not judge(undone).violations


@pytest.mark.parametrize("name", SITES)
def test_every_site_has_faults_and_only_those_of_its_servers(name: str) -> None:
    site, known = SITES[name], faults.load()
    kinds = {kind for kind, fault in known.items() if fault.applies(site)}
    assert "worker killed with its children" in kinds
    assert "messages doubled" in kinds
    assert ("Redis: FLUSHDB" in kinds) == (site.broker == "redis")
    assert ("memory alarm" in kinds) == (site.broker == "rabbitmq")
    assert ("MariaDB crashed" in kinds) == (site.database == "mariadb")
    assert ("PgBouncer killed" in kinds) == site.pooler
    assert ("worker child killed" in kinds) == any(pool == "prefork" for _, _, pool, _ in site.workers)
    assert importlib.util.find_spec(site.settings)
    # A reason for a fault that nobody would do anyway is a stale one.
    assert all(fnmatch.filter(known, pattern) for pattern in site.not_here)


@pytest.mark.servers
@pytest.mark.slow
@pytest.mark.promise("I1")
@pytest.mark.promise("I2")
@pytest.mark.promise("I3")
def test_a_short_campaign_breaks_no_promise(tmp_path: Path) -> None:
    """Faults of every part of the world, cheap ones, one after the other."""
    try:
        PrivatePostgres().close()
        PrivateRabbitMQ().close()
    except ServerMissing as missing:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(missing))
    kinds = (
        "producer killed,worker killed with its children,worker child killed,relay killed,messages doubled,"
        "messages lost,queue deleted,database crashed,database sessions ended,network to the broker cut,"
        "network to the database refused,network to the database half-open,poison job: SIGKILL"
    )
    figures = tmp_path / "figures.json"
    command = [sys.executable, "-m", "qa.chaos", "--json", str(figures), "--keep", str(tmp_path)]
    done = subprocess.run(
        [*command, "--seed", "2", "--seconds", "15", "--every", "0.7", "--lease", "3", "--faults", kinds],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-3000:]}"
    (campaign,) = json.loads(figures.read_text())["campaigns"]
    counted = [fault["kind"] for fault in campaign["faults"] if fault["counted"]]
    assert len(counted) >= 5, f"only {counted} met unfinished work; the campaign shows little"
    assert campaign["figures"]["jobs"] >= 100


def test_the_recovery_scenarios_can_be_started() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "qa.chaos.recovery", "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, "SCENARIO" in done.stdout) == (0, True), done.stderr
