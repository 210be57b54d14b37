"""``python -m qa.contract [KIND …] [-- PYTEST-ARGUMENT …]``: Celery's own integration tests, and what differs.

Needs PostgreSQL (DATABASE_URL, or the usual local one), and the programs of RabbitMQ and Redis, which it starts for
itself. Exit status 0: nothing differs but what qa/contract/differences.py explains, and all of that still does.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Sequence

from qa.contract import sdist, suite
from qa.contract.differences import reason
from qa.contract.kinds import KINDS


def main(argv: Sequence[str]) -> int:
    """Returns the exit status: 0, 1 for a difference that nobody explained, 2 where the tests can't be had."""
    words = list(argv)
    cut = words.index("--") if "--" in words else len(words)
    own, rest = words[:cut], words[cut + 1 :]
    parser = argparse.ArgumentParser(prog="python -m qa.contract", description=__doc__.partition("\n\n")[0])
    names = [kind.name for kind in KINDS]
    parser.add_argument(
        "kinds",
        nargs="*",
        metavar="KIND",
        help=f"of {', '.join(names)}; by default all. Without {names[0]} its last run counts.",
    )
    chosen = parser.parse_args(own).kinds or names
    if unknown := set(chosen) - set(names):
        parser.error(f"no such kind: {', '.join(sorted(unknown))}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the servers end with it
    try:
        folder = sdist.unpacked()
    except sdist.NoSuite as error:
        print(error, file=sys.stderr)
        return 2
    answers = {KINDS[0].name: suite.last_run(KINDS[0])}
    for kind in KINDS:
        if kind.name in chosen:
            began = time.monotonic()
            answers[kind.name] = suite.run(kind, folder, rest)
            verdicts = list(answers[kind.name].values())
            passed, skipped = verdicts.count("passed"), verdicts.count("skipped")
            failed = len(verdicts) - passed - skipped
            took = time.monotonic() - began
            print(f"{kind.name:12} {passed} passed, {failed} failed, {skipped} skipped, {took:.0f} s", flush=True)
    return _compare(answers)


def _compare(answers: dict[str, dict[str, str]]) -> int:
    plain = answers.pop(KINDS[0].name)
    unexplained = 0
    for kind, verdicts in answers.items():
        worse = {
            name: verdict
            for name, verdict in verdicts.items()
            if verdict not in ("passed", "skipped") and plain.get(name) == "passed"
        }
        print(f"\n{kind}: {len(worse)} fail that pass on {KINDS[0].name} Celery")
        for name, verdict in sorted(worse.items()):
            print(f"  {name}: {reason(name) or verdict[:150]}")
        unexplained += sum(reason(name) is None for name in worse)
    broken = sorted(name for name, verdict in plain.items() if verdict not in ("passed", "skipped"))
    if broken:
        print(f"\n{len(broken)} fail on {KINDS[0].name} Celery too, and say nothing: {', '.join(broken)}")
    return 1 if unexplained else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
