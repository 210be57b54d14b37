"""What `make test` runs: tox, for each interpreter at hand, with PostgreSQL and RabbitMQ answering.

.venv/bin/python tools/run_tox.py [ENV[,ENV...] [-- PYTEST-ARGUMENT...]]

The oldest and the newest interpreter run the suite on SQLite, those between them a part of it (see tox.ini); the newest
also runs all of it on the servers. An interpreter that is missing is skipped with a line that says so. The environment
on servers often waits, so the others run beside it; their output follows its own. At the end come what each failed test
said, in short, a table, and the totals in one line.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import debian
import interpreters
import servers

ROOT = Path(__file__).resolve().parent.parent
REQUIRED = [(3, 10), (3, 11), (3, 12), (3, 13)]
TOX_ENV = re.compile(r"^([\w.-]+): commands\[\d+\]>")
TOX_VERDICT = re.compile(r"^  ([\w.-]+): (OK|FAIL|SKIP|IGNORED)\b.*\(([\d.]+)")
PYTEST_SEED = re.compile(r"^Using --randomly-seed=(\d+)")
PYTEST_HEADING = re.compile(r"^=+ ([A-Za-z ]+) =+$")
PYTEST_FAILED = re.compile(r"^_+ (.*\btest_.*?) _+$")
PYTEST_CAPTURED = re.compile(r"^-+ Captured .* -+$")
PYTEST_REASON = re.compile(r"^(E  |\S+:\d+: |\[gw\d+\])")
#: Lines of a failure that are repeated at the end, and characters of each.
SHORT, WIDTH = 12, 400
PYTEST_CLOSING = re.compile(r"^=+ ((?:\d+ \w+(?:, )?)+) in [\d.]+s.* =+$")


def default_envs(found: dict[tuple[int, int], str]) -> list[str]:
    newest = "py{}{}-django{}".format(*max(found), "60" if max(found) >= (3, 12) else "52")
    # On SQLite each interpreter runs the newest Django that it takes.
    django = {(3, 10): "52", (3, 11): "52", (3, 13): "61"}
    names = [f"py{one[0]}{one[1]}-django{django.get(one, '60')}" for one in sorted(found, reverse=True)]
    mariadb = [f"{newest}-mariadb"] if _answers(3306) else []
    return ["lint", "types", f"{newest}-servers", *names, *mariadb]


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=2).close()
    except OSError:
        print(f"skipped: the tests on MariaDB, because nothing answers on port {port}")
        return False
    return True


def main() -> int:
    started = time.monotonic()
    found = interpreters.find()
    chosen = sys.argv[1].split(",") if sys.argv[1:] and sys.argv[1] != "--" else default_envs(found)
    rest = sys.argv[sys.argv.index("--") :] if "--" in sys.argv else []
    for major, minor in REQUIRED:
        if (major, minor) not in found:
            print(f"skipped: py{major}{minor}, because no Python {major}.{minor} was found")
    env = interpreters.uv_like_pip(os.environ)
    env["PATH"] = os.pathsep.join([env.get("PATH", os.defpath), *(str(Path(path).parent) for path in found.values())])
    discover = [word for path in found.values() for word in ("--discover", path)]
    if any("servers" in name for name in chosen) and not debian.ensure():
        print(debian.help_text())
    commands = [
        [sys.executable, "-m", "tox", "run", *discover, "-e", ",".join(names), *rest] for names in lanes(chosen)
    ]
    try:
        with servers.ensured() as urls:
            code, lines = run_beside(commands, {**env, **urls})
    except (servers.NoServer, servers.ServerFailed) as error:
        print(error, file=sys.stderr)
        return 1
    return summary(code, lines, time.monotonic() - started)


def lanes(chosen: list[str]) -> list[list[str]]:
    """The environments in groups that run beside each other: those on servers, and the others."""
    waiting = [name for name in chosen if name.endswith("-servers")]
    return [group for group in (waiting, [name for name in chosen if name not in waiting]) if group]


def run_beside(commands: list[list[str]], env: dict[str, str]) -> tuple[int, list[str]]:
    """Run all at once, pass the first one's output through and the others' after it. Returns an exit code that is 0 if
    all are, and the lines of one command after the other."""
    ends: list[tuple[int, list[str]]] = [(1, [])] * len(commands)

    def one(number: int) -> None:
        ends[number] = run(commands[number], env, shown=number == 0)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(1, len(commands))]
    for thread in threads:
        thread.start()
    one(0)
    for thread in threads:
        thread.join()
    for _, lines in ends[1:]:
        print("\n".join(lines), flush=True)
    return max(code for code, _ in ends), [line for _, lines in ends for line in lines]


def run(command: list[str], env: dict[str, str], *, shown: bool) -> tuple[int, list[str]]:
    """Run and return the exit code and the lines.

    Args:
        shown: pass the output through, or else only say which environment begins.
    """
    lines, name = [], ""
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}
    with subprocess.Popen(command, cwd=ROOT, env=env, stdin=subprocess.DEVNULL, **output) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if shown:
                print(line, end="", flush=True)
            elif (match := TOX_ENV.match(line)) and match[1] != name:
                name = match[1]
                print(f"beside it: {name}\n", end="", flush=True)  # in one piece: the other lane prints, too
            lines.append(line.rstrip())
    return abs(process.returncode), lines


def failures(lines: list[str]) -> list[str]:
    """What each failed test said, in a few lines: whoever sees no more than the end of the output can begin."""
    env, seed, heading, found = "", "", "", []
    left = 0
    for line in lines:
        if match := TOX_ENV.match(line):
            env = match[1]
        elif match := PYTEST_SEED.match(line):
            seed = match[1]
        elif match := PYTEST_HEADING.match(line):
            heading = match[1]
        elif heading in ("FAILURES", "ERRORS") and (match := PYTEST_FAILED.match(line)):
            found.append(f"\n{env}, seed {seed}: {match[1]}")
            left = SHORT
        elif PYTEST_CAPTURED.match(line):
            left = 0
        elif left and heading in ("FAILURES", "ERRORS") and PYTEST_REASON.match(line):
            found.append(f"    {line[:WIDTH]}")
            left -= 1
    return found


def summary(code: int, lines: list[str], seconds: float) -> int:
    env, closing, verdicts, total = "", {}, {}, {"passed": 0, "failed": 0, "skipped": 0}
    for line in lines:
        if match := TOX_ENV.match(line):
            env = match[1]
        elif match := PYTEST_CLOSING.match(line):
            closing[env] = match[1]
            for number, word in re.findall(r"(\d+) (\w+)", match[1]):
                word = "failed" if word.startswith("error") else word
                if word in total:
                    total[word] += int(number)
        elif match := TOX_VERDICT.match(line):
            verdicts[match[1]] = (match[2], float(match[3]))
    print("\n".join(failures(lines)))
    print("\nenvironment              verdict  seconds  tests")
    for name, (verdict, took) in verdicts.items():
        print(f"{name:<24} {verdict:<8} {took:>7.0f}  {closing.get(name, '-')}")
    print(f"make test: {'passed' if code == 0 else 'FAILED'} in {seconds:.0f} s")
    print(f"total: {total['passed']} passed, {total['failed']} failed, {total['skipped']} skipped", flush=True)
    return code


if __name__ == "__main__":
    raise SystemExit(main())
