"""tools/run_tox.py: environments beside each other, one exit status, one table."""

from __future__ import annotations

import configparser
import itertools
import os
import re
import sys
from pathlib import Path

import pytest

from tools import run_tox

ROOT = Path(__file__).resolve().parents[2]
SAYS = """
import sys, time
name, verdict, tests, code = sys.argv[1:]
print(f"{name}: commands[0]> pytest", flush=True)
time.sleep(0.2)
print(f"===== {tests} in 3.21s =====")
print(f"  {name}: {verdict} (3.50=setup[0.10]+cmd[3.40] seconds)")
sys.exit(int(code))
"""


def says(name: str, tests: str, code: int = 0) -> list[str]:
    return [sys.executable, "-c", SAYS, name, "FAIL code 1" if code else "OK", tests, str(code)]


def test_the_environment_on_servers_runs_beside_the_others() -> None:
    chosen = ["lint", "types", "py313-django60-servers", "py312-django60", "py313-django60-mariadb"]
    beside = ["lint", "types", "py312-django60", "py313-django60-mariadb"]
    assert run_tox.lanes(chosen) == [["py313-django60-servers"], beside]
    assert run_tox.lanes(["lint"]) == [["lint"]]
    assert run_tox.lanes(["py313-django60-servers"]) == [["py313-django60-servers"]]


@pytest.mark.parametrize(("first", "second"), [(0, 0), (1, 0), (0, 1)])
def test_the_status_is_that_of_all_and_no_line_is_mixed(
    capfd: pytest.CaptureFixture[str], first: int, second: int
) -> None:
    commands = [says("a-servers", "3 passed, 1 skipped", first), says("b", "2 failed, 5 passed", second)]
    code, lines = run_tox.run_beside(commands, dict(os.environ))
    assert code == max(first, second)
    assert run_tox.summary(code, lines, 4.0) == code
    shown = [line for line in capfd.readouterr().out.splitlines() if not line.startswith("beside it: b")]
    assert [line.split(":")[0] for line in lines if ": commands" in line] == ["a-servers", "b"]
    assert shown[: len(lines)] == lines
    assert shown[-1] == "total: 8 passed, 2 failed, 1 skipped"
    table = [line.split() for line in shown[-5:-2]]
    assert [words[0] for words in table[1:]] == ["a-servers", "b"]
    assert table[1][1] == ("FAIL" if first else "OK")
    assert table[1][3:] == ["3", "passed,", "1", "skipped"]


PYTEST_SAYS = """\
py313-django60-servers: commands[0]> python -m pytest
Using --randomly-seed=77
============================= test session starts ==============================
=================================== FAILURES ===================================
___________________________ test_that_fails[part-1] ____________________________
[gw3] linux -- Python 3.13.0
    def test_that_fails():
>       assert answer == 3
tests/test_it.py:6: in asked
_ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _
E       assert 4 == 3
tests/test_it.py:7: AssertionError
------------------------------ Captured log call -------------------------------
E   is what a program logged
=========================== short test summary info ============================
FAILED tests/test_it.py::test_that_fails[part-1]
========================= 1 failed, 3 passed in 3.21s ==========================
"""


def test_what_failed_is_told_again_at_the_end() -> None:
    assert run_tox.failures(PYTEST_SAYS.splitlines()) == [
        "\npy313-django60-servers, seed 77: test_that_fails[part-1]",
        "    [gw3] linux -- Python 3.13.0",
        "    tests/test_it.py:6: in asked",
        "    E       assert 4 == 3",
        "    tests/test_it.py:7: AssertionError",
    ]


def expanded(name: str) -> list[str]:
    before, brace, rest = name.partition("{")
    if not brace:
        return [name]
    among, _, after = rest.partition("}")
    return [one for word in among.split(",") for one in expanded(before + word + after)]


def test_tox_knows_every_environment_that_the_makefile_names() -> None:
    tox = configparser.ConfigParser(interpolation=None)
    tox.read(ROOT / "tox.ini")
    sections = [name.removeprefix("testenv:") for name in tox.sections() if name.startswith("testenv:")]
    known = {*tox["tox"]["env_list"].split(), *itertools.chain.from_iterable(map(expanded, sections))}
    pairs = re.search(r"^PAIRS = ((?:.*\\\n)*.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert pairs
    named = re.sub(r"[\\\s]", "", pairs[1]).split(",")
    assert len(named) == 9
    assert set(named) <= known
