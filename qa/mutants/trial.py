"""One mutant's trial: a copy of the tree, its databases, the tests that it names, a verdict."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

from qa.mutants.mutant import ROOT, Mutant, mutated

#: Seconds for one test. A mutant that makes its test hang is noticed, but not by the assertion that was meant to.
TEST_TIMEOUT = 200
#: Seconds for all tests of a run; above that of one test, so that the processes which tests started are ended.
RUN_TIMEOUT = 900.0
#: Most of the protections don't exist on SQLite: without these, their tests are red, or skipped, before any mutant is.
SERVERS = {
    "DATABASE_URL": "postgresql://postgres@127.0.0.1:5432/postgres",
    "BROKER_URL": "amqp://guest:guest@127.0.0.1:5672//",
}
#: Compiled files are copied: most of a short trial would be compiling. Python compiles what a mutant changes again.
_COPIED = (
    "conftest.py",
    "pyproject.toml",
    "reliable_jobs",
    "tests",
    "qa",
    "tools",
    "demo_project",
    "docs",
    "README.md",
)


@dataclasses.dataclass(frozen=True)
class Trial:
    """How a mutant fared.

    Args:
        verdict: "red", or why the mutant counts as not noticed.
        seconds: how long the trial took.
        output: what pytest printed.
    """

    mutant: Mutant
    verdict: str
    seconds: float
    output: str

    @property
    def red(self) -> bool:
        return self.verdict == "red"

    @property
    def error(self) -> str:
        """The first line of the test's error, if the mutant was noticed."""
        lines = re.findall(r"^E +(.+)$", self.output, re.MULTILINE)
        return lines[0] if lines and self.red else ""


def run_tests(tree: Path, tests: Sequence[str], *options: str, patience: float) -> tuple[int, str]:
    """Exit code of pytest (-1 if it had to be ended) and what it printed.

    Args:
        patience: seconds that a test waits for a condition.
    """
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--timeout={TEST_TIMEOUT}", *options]
    own_database = f"test_mutant_{uuid.uuid4().hex[:8]}"  # several run at a time
    env = {**SERVERS, **os.environ, "PATIENCE": str(patience), "PYTHONPATH": str(tree)}
    if not env["DATABASE_URL"].startswith("postgres"):
        env["DATABASE_URL"] = SERVERS["DATABASE_URL"]
    env["TEST_DATABASE_NAME"] = own_database
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen([*argv, *tests], cwd=tree, env=env, stdout=output, stderr=subprocess.STDOUT)
        try:
            code = process.wait(RUN_TIMEOUT)
        except subprocess.TimeoutExpired:
            code = -1
            process.send_signal(signal.SIGINT)  # pytest ends what its tests have started, and drops the databases
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
        output.seek(0)
        return code, output.read()


def try_mutant(mutant: Mutant, patience: float) -> Trial:
    """Run the mutant's tests in a copy of the tree that lacks the protection."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="rj-mutant-") as directory:
        tree = copy_of_the_tree(Path(directory) / "tree")
        try:
            files = mutated(mutant, tree / "reliable_jobs")
        except ValueError as error:
            return Trial(mutant, "NOT APPLIED", 0.0, str(error))
        for path, text in files.items():
            path.write_text(text)
            for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"):
                compiled.unlink()
        code, output = run_tests(tree, mutant.tests, "-x", "-p", "no:randomly", patience=patience)
    return Trial(mutant, verdict(code, output), time.monotonic() - began, output)


def verdict(code: int, output: str) -> str:
    """What pytest's exit code and output say of a mutant: "red" only if an assertion or an error of a test failed."""
    if code == 0:
        return "SURVIVED"
    if code == -1 or re.search(r"^E +Failed: Timeout \(>", output, re.MULTILINE):
        return "TIMED OUT"
    if code != 1:
        return f"BROKEN ({code})"
    # An error in a fixture shows nothing.
    return "red" if re.search(r"^\d+ failed", output, re.MULTILINE) else "BROKEN (set-up)"


def copy_of_the_tree(tree: Path) -> Path:
    """What the tests need of the project, with its compiled files."""
    tree.mkdir()
    for name in _COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tree / name)
        else:
            shutil.copy2(ROOT / name, tree / name)
    return tree
