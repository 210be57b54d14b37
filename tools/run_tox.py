"""What `make test` runs: tox, for each interpreter at hand, with PostgreSQL and RabbitMQ answering.

.venv/bin/python tools/run_tox.py [ENV[,ENV...] [-- PYTEST-ARGUMENT...]]

Every interpreter runs the suite on SQLite; the newest also runs all of it on the servers. An interpreter that is
missing is skipped with a line that says so. At the end comes a table, and the totals in one line.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
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
    command = [sys.executable, "-m", "tox", "run", *discover, "-e", ",".join(chosen), *rest]
    try:
        with servers.ensured() as urls:
            code, lines = run(command, {**env, **urls})
    except (servers.NoServer, servers.ServerFailed) as error:
        print(error, file=sys.stderr)
        return 1
    return summary(code, lines, time.monotonic() - started)


def run(command: list[str], env: dict[str, str]) -> tuple[int, list[str]]:
    """Run, passing the output through, and return the exit code and the lines."""
    lines = []
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}
    with subprocess.Popen(command, cwd=ROOT, env=env, stdin=subprocess.DEVNULL, **output) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line.rstrip())
    return process.returncode, lines


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
    print("\nenvironment              verdict  seconds  tests")
    for name, (verdict, took) in verdicts.items():
        print(f"{name:<24} {verdict:<8} {took:>7.0f}  {closing.get(name, '-')}")
    print(f"make test: {'passed' if code == 0 else 'FAILED'} in {seconds:.0f} s")
    print(f"total: {total['passed']} passed, {total['failed']} failed, {total['skipped']} skipped", flush=True)
    return code


if __name__ == "__main__":
    raise SystemExit(main())
