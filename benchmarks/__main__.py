"""Measures the contenders side by side and prints medians, spread and ratios.

    python -m benchmarks [enqueue bulk relay work scale memory results chord latency behind sweep horizon churn hour
                         watching faults pressure] [--rounds N] [--quick] [--json FILE]

Uses the PostgreSQL of DATABASE_URL and the RabbitMQ of BROKER_URL (by default those on this machine) and removes there
what it has made. Every run counts effects: a contender that loses or doubles one gets no figure but VOID, and the exit
status is 1. Only 'faults' reports what is lost or doubled as figures; it has a PostgreSQL of its own.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import signal
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import harness

NAMES = (
    "enqueue",
    "bulk",
    "relay",
    "work",
    "scale",
    "memory",
    "results",
    "chord",
    "latency",
    "behind",
    "sweep",
    "horizon",
    "churn",
    "hour",
    "watching",
    "faults",
    "pressure",
)


def main() -> int:
    parser = argparse.ArgumentParser(
        "python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="name", choices=[[], *NAMES], help="which ones; by default all")
    parser.add_argument("--rounds", type=int, help="of each benchmark, in place of its own number")
    parser.add_argument("--quick", action="store_true", help="one round with small numbers: does it run at all?")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every single figure there")
    options = parser.parse_args()
    # So that the servers are cleaned up, whatever ends this.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))

    benchmarks: dict[str, harness.Benchmark] = {
        name: importlib.import_module(f"benchmarks.{name}").BENCHMARK for name in options.names or NAMES
    }
    servers = harness.Servers()
    record: dict[str, Any] = {}
    void = False
    try:
        record["head"] = harness.head(benchmarks, servers)
        for fact, value in record["head"].items():
            print(f"{fact:20} {value}")
        for name, benchmark in benchmarks.items():
            print(f"\n== {name}: {benchmark.about}")
            started = time.monotonic()
            rounds = options.rounds or (1 if options.quick else benchmark.rounds)
            outcomes, loads = harness.run(benchmark, rounds, options.quick, servers)
            harness.print_tables(benchmark, outcomes)
            print(f"   took {time.monotonic() - started:.0f} s", flush=True)
            record[name] = {
                "sizes": dict(benchmark.quick if options.quick else benchmark.normal),
                "loads": loads,
                "contenders": {label: dataclasses.asdict(outcome) for label, outcome in outcomes.items()},
            }
            void = void or any(outcome.void for outcome in outcomes.values())
    finally:
        servers.close()
        if options.json:
            options.json.write_text(json.dumps(record, indent=1))
    return int(void)


if __name__ == "__main__":
    sys.exit(main())
