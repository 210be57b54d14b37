"""The progress bar, the table at the end, the JSON line."""

from __future__ import annotations

import json
import time
from typing import Any

from demo_project.trial.acts import Tally
from demo_project.trial.evidence import Verdict

WIDTH = 24
#: Seconds between two lines where the output is not a terminal.
QUIET = 5.0


class Progress:
    """One line that is drawn over and over on a terminal; a line now and then elsewhere.

    Args:
        out: a management command's ``stdout``.
    """

    def __init__(self, out: Any) -> None:
        self.out = out
        self.live = out.isatty()
        self.began = time.monotonic()
        self._next = 0.0

    def show(self, placed: int, wanted: int, open_: int, tally: Tally, act: str) -> None:
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + (0.2 if self.live else QUIET)
        share = min(1.0, placed / wanted) if wanted else 1.0
        bar = "#" * round(WIDTH * share)
        text = (
            f"[{bar:-<{WIDTH}}] {placed} orders, {open_} open, {tally.kills} killed, {tally.wiped} wiped, "
            f"{now - self.began:.0f} s: {act}"
        )
        if self.live:
            self.out.write(f"\r{text:<118.118}", ending="")
        else:
            self.out.write(text)
        self.out.flush()

    def end(self) -> None:
        if self.live:
            self.out.write("\r" + " " * 118 + "\r", ending="")


def table(tally: Tally, verdict: Verdict) -> str:
    rows: list[tuple[str, Any] | None] = [
        ("orders placed, each with its jobs in one transaction", verdict.orders),
        ("delivery notes uploaded, each booked whole or not at all", verdict.uploads),
        None,
        ("orders rolled back after delay() had been called", verdict.rolled_back),
        ("payments that the provider refused at first, paid since", verdict.retried),
        ("processes and workers killed (SIGKILL) inside a body", tally.kills),
        ("processes held inside a body until another did their job", tally.pauses),
        ("messages that the broker lost", tally.wiped),
        ("messages that it delivered twice", tally.copied),
        ("jobs hit by these, done all the same", f"{verdict.rescued} of {len(tally.harmed)}"),
        ("outside effects repeated under the same key, as promised", verdict.repeated),
        None,
        ("lost", len(verdict.lost)),
        ("invented (effects of orders that were rolled back)", len(verdict.phantom)),
        ("doubled", len(verdict.duplicates)),
    ]
    width = max(len(row[0]) for row in rows if row)
    rule = "-" * (width + 12)
    shown = [rule if row is None else f"{row[0]:<{width}}  {row[1]:>10}" for row in rows]
    return "\n".join([rule, *shown, rule])


def json_line(tally: Tally, verdict: Verdict, seconds: float) -> str:
    return json.dumps(
        {
            "orders": verdict.orders,
            "rolled_back": verdict.rolled_back,
            "lost": len(verdict.lost),
            "phantom": len(verdict.phantom),
            "duplicate_effects": len(verdict.duplicates),
            "retried": verdict.retried,
            "rescued": verdict.rescued,
            "workers_killed": tally.kills,
            "messages_wiped": tally.wiped,
            "seconds": round(seconds, 1),
        }
    )


def complaints(tally: Tally, verdict: Verdict) -> list[str]:
    """Why the run does not count as passed; [] when it does."""
    least = (
        ("orders", verdict.orders, 300),
        ("orders rolled back", verdict.rolled_back, 20),
        ("kills inside a body", tally.kills, 3),
        ("runs held past their lease", tally.pauses, 1),
        ("messages lost by the broker", tally.wiped, 20),
        ("messages delivered twice", tally.copied, 1),
        ("retried", verdict.retried, 1),
        ("rescued", verdict.rescued, 1),
    )
    found = [f"only {count} {name}, at least {wanted} wanted" for name, count, wanted in least if count < wanted]
    if verdict.cut_short:
        found.append(
            "the time was up while orders were still getting done: give it more --seconds, or a quieter machine"
        )
    for name, items in (("lost", verdict.lost), ("invented", verdict.phantom), ("doubled", verdict.duplicates)):
        if items:
            found.append(f"{len(items)} {name}: " + "; ".join(items[:3]) + (" …" if len(items) > 3 else ""))
    return found
