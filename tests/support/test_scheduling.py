"""Long files are handed out first, and the tests of some files one by one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import scheduling
from tests.support.harness import ROOT


def test_each_file_that_is_named_exists_and_is_named_once() -> None:
    named = [*scheduling.LONGEST, *scheduling.APART]
    assert [file for file in named if not (ROOT / file).is_file()] == []
    assert len(set(scheduling.LONGEST)) == len(scheduling.LONGEST)
    assert set(scheduling.APART) <= set(scheduling.LONGEST)


def test_tests_of_a_file_stay_together_unless_it_is_apart(tmp_path: Path) -> None:
    for name in ("together", "apart", "other"):
        tests = (f"def test_{number}(): time.sleep(0.3)" for number in range(4))
        (tmp_path / f"test_{name}.py").write_text("import time\n" + "\n".join(tests))
    (tmp_path / "conftest.py").write_text(
        'pytest_plugins = ["tests.support.scheduling"]\n'
        "from tests.support import scheduling\n"
        'scheduling.LONGEST = ("test_other.py", "test_apart.py")\n'
        'scheduling.APART = ("test_apart.py",)\n'
        "scheduling.LONG = 1.0\n"
    )
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    options = ["-v", "-n", "3", "--dist", "loadfile", "-p", "no:django", "-p", "no:cacheprovider", "-c", "pytest.ini"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    ran = [line.split() for line in done.stdout.splitlines() if "PASSED" in line]
    processes = {
        name: {process for process, *_, test in ran if test.startswith(f"test_{name}.py")}
        for name in ("together", "apart", "other")
    }
    assert len(processes["together"]) == len(processes["other"]) == 1
    assert len(processes["apart"]) > 1
    assert "test_together.py" in done.stdout.partition("long files that")[2]
    assert "test_other.py" not in done.stdout.partition("long files that")[2]


@pytest.mark.parametrize("last", [0, -1])
def test_the_longest_come_in_their_order_and_before_all_others(last: int) -> None:
    nodeids = ["tests/test_conf.py::test_a", *(f"{file}::test_a" for file in reversed(scheduling.LONGEST))]
    ordered = sorted(nodeids, key=scheduling.rank)
    assert ordered[last].startswith((scheduling.LONGEST[0], "tests/test_conf.py")[last])
