"""Whole generated projects with the built wheel: five of `tests/sites`, and how their verdict is reached.

`make sites` runs all of them.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from tests.sites import environments, observed, report
from tests.sites.catalogue import FIVE, SITES
from tests.sites.run import MISSING, Row, run
from tests.sites.servers import Servers
from tests.sites.site import Observed
from tests.sites.verdict import ENTRIES, Verdict, judge
from tests.support.harness import server_urls


@pytest.fixture(scope="module")
def rows(request: pytest.FixtureRequest) -> Iterator[dict[str, Future[Row]]]:
    """The runs of the sites that this session has been asked for, three at a time: they mostly wait."""
    names = {item.callspec.params.get("name") for item in request.session.items if hasattr(item, "callspec")}
    with Servers(*server_urls()) as servers, ThreadPoolExecutor(3) as pool:
        yield {site.name: pool.submit(run, site, servers) for site in SITES if site.name in names & set(FIVE)}
    environments.forget_wheel()


@pytest.mark.servers
@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.promise("I1")
@pytest.mark.promise("I2")
@pytest.mark.promise("I3")
@pytest.mark.parametrize("name", FIVE)
def test_a_whole_project_loses_and_doubles_nothing(name: str, rows: dict[str, Future[Row]]) -> None:
    row = rows[name].result()
    if row.verdict == MISSING and os.environ.get("CI") != "true":
        pytest.skip(row.evidence[0])
    assert row.clean, "\n".join([report.table([row]), *row.evidence])


# --- the catalogue and the verdict ------------------------------------------------------------------------------------


def test_sites_have_names_of_their_own_and_say_what_they_vary() -> None:
    assert len({site.name for site in SITES}) == len(SITES)
    base = dataclasses.asdict(SITES[0])
    told = {"name", "varies", "kind", "named", "refused"}
    for site in SITES[1:]:
        assert site.varies
        differs = {name for name, value in dataclasses.asdict(site).items() if value != base[name]} - told
        assert differs, f"{site.name} is the base site under another name"


class Tables:
    """Answers the verdict's statements from lists."""

    def __init__(self) -> None:
        self.orders = [0, 4]
        self.entries = [(0, "booked"), *((4, what) for what in ("packed", "labelled", "weighed", "shipped"))]
        self.jobs: list[Any] = []
        self.open_groups: list[str] = []

    def __call__(self, sql: str, alias: str = "default") -> list[list[Any]]:
        if "shop_order" in sql:
            return [[number] for number in self.orders]
        if "jobgroup" in sql:
            return [[group] for group in self.open_groups]
        return [list(row) for row in (self.entries if "shop_entry" in sql else self.jobs)]

    def judged(self) -> Verdict:
        return judge(self, {0: 200, 4: 200, 9: 409})


def test_a_run_without_a_fault_has_all_zeros() -> None:
    assert Tables().judged().clean


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda tables: tables.entries.remove((4, "shipped")), "lost"),
        (lambda tables: tables.orders.remove(0) or tables.entries.remove((0, "booked")), "lost"),
        (lambda tables: tables.orders.append(9) or tables.entries.append((9, "reminded")), "phantom"),
        (lambda tables: tables.entries.append((9, "reminded")), "phantom"),
        (lambda tables: tables.entries.append((0, "booked")), "doubled"),
        (lambda tables: tables.jobs.append(("1", "shop.tasks.book", "waiting", "", "")), "unfinished"),
        (lambda tables: tables.jobs.append(("1", "shop.tasks.book", "failed", "error", "")), "healthy_but_failed"),
        (lambda tables: tables.open_groups.append("1"), "unfinished"),
    ],
)
def test_the_verdict_sees(change: Any, what: str) -> None:
    tables = Tables()
    change(tables)
    counts = {name: value for name, value in dataclasses.asdict(tables.judged()).items() if name != "evidence"}
    assert {name for name, value in counts.items() if value} == {what}


def test_each_kind_of_order_leads_to_entries_that_no_other_kind_has() -> None:
    entries = [what for kind in ENTRIES for what in kind]
    assert len(set(entries)) == len(entries)


def test_the_docs_page_shows_zeros_or_a_refusal_for_sites_that_exist() -> None:
    made = report.PAGE.read_text().split(report.BEGIN)[1].split(report.END)[0]
    lines = [line for line in made.splitlines() if line.startswith("| ")]
    shown = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    names = {site.name for site in SITES}
    for name, _, _, *counts, _, _, verdict in [cells for cells in shown if cells[0] != "site"]:
        assert name in names
        refused = verdict.startswith("refused: ") and set(counts) == {"-"}
        assert refused or (verdict == "zeros" and set(counts) == {"0"}), name


NOTED = [
    {"number": 0, "what": "Order", "trace": "a", "joined": True},
    {"number": 0, "what": "booked", "trace": "a", "joined": True},
    {"number": 9, "what": "Order", "trace": "b", "joined": True},
]
REFUSED = {"kind": "shop.planned.Refused", "text": "order 0 is refused"}
ENDED = [{"kind": kind, "text": "Job …"} for kind in observed.ENDINGS]


def test_a_library_that_was_handed_everything_is_not_blamed() -> None:
    log = "[2026-01-01 00:00:00,000: ERROR/ForkPoolWorker-1] Task planned.refuse[0] raised unexpected: Refused()"
    assert not list(observed.traces(Observed(), NOTED, {0}))
    assert not list(observed.errors([REFUSED, *ENDED], {0}))
    assert not list(observed.log_errors(log))


@pytest.mark.parametrize(
    "noted",
    [
        NOTED[:1],
        [NOTED[0], {**NOTED[1], "trace": "c"}],
        [{**NOTED[0], "trace": "None"}, {**NOTED[1], "trace": "None"}],
        [NOTED[0], {**NOTED[1], "joined": False}],
    ],
)
def test_a_trace_that_does_not_go_on_is_seen(noted: list[Any]) -> None:
    assert len(list(observed.traces(Observed(), noted, {0}))) == 1


@pytest.mark.parametrize(
    "noted",
    [
        ENDED,
        [REFUSED, *ENDED[1:]],
        [REFUSED, REFUSED, *ENDED],
        [REFUSED, *ENDED, {"kind": "celery.exceptions.Retry", "text": "Retry in 1s"}],
    ],
)
def test_an_error_that_is_reported_otherwise_than_once_is_seen(noted: list[Any]) -> None:
    assert len(list(observed.errors(noted, {0}))) == 1


def test_an_error_in_the_log_of_a_worker_is_seen() -> None:
    assert len(list(observed.log_errors("[2026-01-01 00:00:00,000: ERROR/MainProcess] Job 1 could not be parked"))) == 1


def test_the_table_has_a_line_for_each_site() -> None:
    text = report.table([Row("base", "base", "nothing", verdict="zeros", lost=0), Row("other", "base", "something")])
    assert [line.split()[0] for line in text.splitlines()] == ["site", "base", "other"]
