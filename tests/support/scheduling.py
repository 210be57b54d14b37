"""The order in which pytest-xdist hands out test files: the longest first, so that no process is idle at the end.

`LONGEST` is kept by hand. A run that meets a long file which it does not name says so at its end.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

#: Files that take more than `LONG` seconds on servers, the longest first.
LONGEST = (
    "tests/project/test_demo.py",
    "tests/sites/test_sites.py",
    "tests/project/test_readme.py",
    "qa/crashes/test_crash_at_every_step.py",
    "qa/model/test_model.py",
    "tests/testing/test_testing_crashes.py",
    "tests/worker/test_consuming.py",
    "tests/promises/test_promise_6_bounded_loops.py",
    "tests/promises/test_promise_5_outages_cost_time.py",
    "tests/promises/test_promise_2_nothing_forgotten.py",
    "qa/errors/test_error_at_every_call.py",
    "tests/run/test_delivery_batches_servers.py",
    "tests/run/test_bundle_servers.py",
    "tests/promises/test_adversary.py",
    "tests/adopt/test_adoption.py",
    "tests/promises/test_promise_7_no_silent_discard.py",
    "tests/run/test_pools.py",
    "tests/admin/test_admin_browser.py",
    "tests/admin/test_questions.py",
    "tests/sweep/test_relay.py",
    "tests/contract/test_control_commands.py",
    "tests/support/test_private_servers.py",
    "tests/results/test_around_backends.py",
    "qa/chaos/test_chaos.py",
    "qa/crashes/test_workflow_crashes.py",
    "tests/project/test_without_extras.py",
    "tests/workflow/test_chords.py",
    "tests/admin/test_histories_browser.py",
    "tests/checks/test_checks.py",
    "tests/telemetry/test_prometheus.py",
    "qa/errors/test_workflow_errors.py",
)
#: Files whose tests share no process and no database. Each test is handed out by itself. The demos stay together: each
#: starts about twenty processes, and four at once leave a small machine no time for any of them.
APART = ("tests/project/test_readme.py",)
#: Seconds from which a file belongs to LONGEST.
LONG = 40.0

_took: Counter[str] = Counter()


def file_of(nodeid: str) -> str:
    return nodeid.split("::", 1)[0]


def rank(nodeid: str) -> int:
    """The place of a test's file among the longest; those of all others are equal."""
    file = file_of(nodeid)
    return LONGEST.index(file) if file in LONGEST else len(LONGEST)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """After pytest-randomly has shuffled them: what is not among the longest keeps its place."""
    items.sort(key=lambda item: rank(item.nodeid))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """As ``--dist loadfile``, but for the files of `APART`."""
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class ByFile(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return nodeid if file_of(nodeid) in APART else super()._split_scope(nodeid)

    config.option.loadscopereorder = False
    return ByFile(config, log)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    _took[file_of(report.nodeid)] += report.duration


def pytest_terminal_summary(terminalreporter: Any) -> None:
    new = {file: seconds for file, seconds in _took.items() if seconds > LONG and file not in LONGEST}
    if new:
        terminalreporter.section("long files that tests/support/scheduling.py does not name")
        for file, seconds in sorted(new.items(), key=lambda item: -item[1]):
            terminalreporter.line(f"{seconds:5.0f} s  {file}")
