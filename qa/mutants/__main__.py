"""Switches each protection off in turn and requires a red test: ``python -m qa.mutants [--only NAME …] [--jobs N]``.

A promise whose protection can be removed unnoticed is not tested. Each mutant is one exact replacement in a copy of the
tree; it names the one or few tests that notice. These are first run unchanged, all of them at once, and must be green.
Needs PostgreSQL and RabbitMQ: those of DATABASE_URL and BROKER_URL, or the usual local ones.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import functools
import os
import sys
import time
from collections.abc import Sequence

from qa.mutants.catalogue import MUTANTS
from qa.mutants.mutant import ROOT, Mutant, mutated
from qa.mutants.trial import run_tests, try_mutant

#: A trial computes for some 6 s, and may wait for as long as a test's patience: several share a core.
JOBS = 2 * (os.cpu_count() or 1)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0: every mutant was noticed; 1: one was not, or the tests are red without any; 2: a wrong argument."""
    parser = argparse.ArgumentParser(prog="python -m qa.mutants", description=__doc__)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these mutants only")
    parser.add_argument("--jobs", type=int, default=JOBS, help="mutants tried at the same time (default %(default)s)")
    parser.add_argument("--list", action="store_true", help="print their names, and whether they apply")
    parser.add_argument("--no-baseline", action="store_true", help="do not run the tests unchanged first")
    parser.add_argument("--verbose", action="store_true", help="show pytest's output for every mutant")
    parser.add_argument(
        "--patience", type=float, default=15.0, help="seconds a test waits for a condition (default %(default)g)"
    )
    options = parser.parse_args(argv)
    unknown = set(options.only or ()) - {mutant.name for mutant in MUTANTS}
    if unknown:
        parser.error(f"no such mutant: {', '.join(sorted(unknown))}")
    chosen = [mutant for mutant in MUTANTS if not options.only or mutant.name in options.only]
    if options.list:
        return _list(chosen)
    began = time.monotonic()
    if not options.no_baseline and not _baseline(chosen, options.jobs, options.patience):
        return 1
    survivors = 0
    print(f"{'protection switched off':36} {'promises':9} {'file':26} {'verdict':15} seconds  the test's error")
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as executor:
        for trial in executor.map(functools.partial(try_mutant, patience=options.patience), chosen):
            mutant = trial.mutant
            row = f"{mutant.name:36} {mutant.promises:9} {mutant.file:26} {trial.verdict:15} {trial.seconds:7.0f}"
            print(f"{row}  {trial.error[:80]}", flush=True)
            survivors += not trial.red
            if options.verbose or not trial.red:
                print(trial.output[-3000:])
    minutes = (time.monotonic() - began) / 60
    print(f"{len(chosen)} protections switched off, {len(chosen) - survivors} noticed, in {minutes:.1f} minutes.")
    return 1 if survivors else 0


def _baseline(chosen: Sequence[Mutant], jobs: int, patience: float) -> bool:
    """Whether the tests are green without a mutant, as many at a time and as patient as with one."""
    tests = sorted({test for mutant in chosen for test in mutant.tests})
    processes = min(jobs, len({test.split("::")[0] for test in tests}))
    code, output = run_tests(ROOT, tests, "-n", str(processes), "--dist", "loadfile", patience=patience)
    if code != 0:
        print(output[-8000:])
        print("No verdict: the tests are red without any mutant, or the machine is too busy for --patience.")
        return False
    print(f"{len(tests)} tests are green without a mutant.", flush=True)
    return True


def _list(chosen: Sequence[Mutant]) -> int:
    wrong = 0
    for mutant in chosen:
        try:
            mutated(mutant, ROOT / "reliable_jobs")
        except ValueError as error:
            wrong += 1
            print(f"NOT APPLIED  {error}")
        else:
            print(f"{mutant.name:36} {mutant.promises:9} {mutant.file}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
