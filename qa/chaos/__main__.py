"""``python -m qa.chaos``: random faults by a seed, and a verdict. Exit code 1: a promise was broken; 2: the campaign
itself was in trouble."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from qa.chaos.sites import SITES, Site

ROOT = Path(__file__).resolve().parent.parent.parent
#: By the name of a package on the registry, the module that shows that it is there.
_SHOWN_BY = {"mysqlclient": "MySQLdb"}


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m qa.chaos", description=__doc__)
    parser.add_argument("--seconds", type=float, default=120.0, help="how long faults go on, per seed")
    parser.add_argument("--seed", type=int, action="append", default=[], help="may be given several times")
    parser.add_argument("--seeds", default="", help="a range: 1-10")
    parser.add_argument("--site", default="plain", help="where it takes place (default: plain); 'list' names them")
    parser.add_argument("--faults", default="", help="kinds, separated by commas (default: all); 'list' names them")
    parser.add_argument("--work", choices=["mixed", "workflows"], default="mixed", help="what the producers order")
    parser.add_argument("--every", type=float, default=3.0, help="seconds between two faults, on average")
    parser.add_argument("--jobs", type=int, default=20_000, help="faults end at so many jobs, per seed")
    parser.add_argument("--rate", type=float, default=3.0, help="orders a second and producer, of some 3 jobs each")
    parser.add_argument("--stall", type=float, default=90.0, help="seconds at the end with nothing finished: give up")
    parser.add_argument("--grace", type=float, default=3.0, help="RELIABLE_JOBS['GRACE'] in the campaign")
    parser.add_argument("--lease", type=float, default=4.0, help="RELIABLE_JOBS['LEASE'] in the campaign")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--keep", type=Path, default=Path("var/chaos"), help="where evidence of violations is left")
    return parser.parse_args(argv)


def seeds(options: argparse.Namespace) -> list[int]:
    chosen: list[int] = list(options.seed)
    if options.seeds:
        first, _, last = options.seeds.partition("-")
        chosen += range(int(first), int(last or first) + 1)
    return chosen or [1]


def take_down_at_sigterm() -> None:
    """End as a Ctrl-C would, servers and all; a second signal must not disturb that."""

    def end(number: int, frame: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        sys.exit(3)

    signal.signal(signal.SIGTERM, end)


def in_its_own_environment(site: Site) -> None:
    """Go on in a virtual environment that has what the site needs, where this one hasn't; it is made once."""
    names = [package.partition(">")[0] for package in site.packages]
    if all(importlib.util.find_spec(_SHOWN_BY.get(name, name)) for name in names):
        return
    place = ROOT / f".venv-chaos-{'-'.join(names)}"
    made = [sys.executable, "tools/venv.py", str(place), "-r", "requirements-test.txt", *site.packages]
    if subprocess.run(made, cwd=ROOT).returncode:
        sys.exit(f"site {site.module}: {', '.join(site.packages)} could not be installed, see above")
    python = str(place / "bin" / "python")
    if sys.executable == python:
        sys.exit(f"site {site.module}: {', '.join(names)} can't be imported from {place}")
    os.execv(python, [python, "-m", "qa.chaos", *sys.argv[1:]])  # by its path: Python finds its packages by that


def main(argv: list[str] | None = None) -> int:
    options = arguments(argv)
    if options.site == "list":
        print("\n".join(f"{name:14} {site.about}" for name, site in SITES.items()))
        return 0
    if options.site not in SITES:
        sys.exit(f"unknown site {options.site}; --site list names them")
    site = SITES[options.site]
    in_its_own_environment(site)
    os.environ["DJANGO_SETTINGS_MODULE"] = site.settings
    import django

    django.setup()
    from qa.chaos import faults, report
    from qa.chaos.campaign import Campaign, Plan, Result
    from qa.chaos.work import WORK

    known = {kind: fault for kind, fault in faults.load().items() if fault.applies(site)}
    if options.faults == "list":
        print("\n".join(known))
        for pattern, why in site.not_here.items():
            print(f"not here: {pattern}: {why}")
        return 0
    kinds = tuple(kind.strip() for kind in options.faults.split(",") if kind.strip()) or tuple(known)
    if unknown := set(kinds) - set(known):
        sys.exit(f"unknown faults: {', '.join(sorted(unknown))}; --faults list names them")
    settings: dict[str, Any] = {
        "GRACE": options.grace,
        "LEASE": options.lease,
        "WORKER_SWEEP_INTERVAL": 5.0,
    }
    plan = Plan(
        seconds=options.seconds,
        every=options.every,
        jobs=options.jobs,
        stall=options.stall,
        kinds=kinds,
        per_second=options.rate,
        settings=settings,
        directory=options.keep,
        site=site,
    )
    os.environ[WORK] = options.work
    take_down_at_sigterm()
    results: list[Result] = []
    try:
        for seed in seeds(options):
            result = Campaign(plan, seed).run()
            results.append(result)
            print(report.line(result), flush=True)
    finally:  # what was found before somebody lost patience is worth having
        if results:
            print(report.as_words(results))
        if options.json:
            options.json.write_text(json.dumps(report.as_json(results), indent=1))
    if any(result.verdict.violations for result in results):
        return 1
    return 2 if any(result.errors for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
