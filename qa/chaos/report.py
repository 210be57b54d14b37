"""What a call of the campaign says: words for people, JSON for machines."""

from __future__ import annotations

import collections
import statistics
from typing import Any

from qa.chaos.campaign import Result

#: What must be zero, in this order.
MUST_BE_ZERO = ("lost", "phantom", "duplicate", "without a final state", "healthy failed")

#: Violations of a seed that are printed; all of them are in the evidence.
MOST_TOLD = 20


def as_json(results: list[Result]) -> dict[str, Any]:
    return {
        "ok": all(result.ok for result in results),
        "campaigns": [
            {
                "seed": result.seed,
                "ok": result.ok,
                "violations": [str(violation) for violation in result.verdict.violations],
                "errors": result.errors,
                "figures": result.verdict.figures,
                "faults": [strike.facts() for strike in result.strikes],
                "evidence": str(result.kept) if result.kept else None,
            }
            for result in results
        ],
    }


def line(result: Result) -> str:
    """One campaign, as soon as it is over."""
    hits = sum(strike.counted for strike in result.strikes)
    words = f"seed {result.seed}: {'ok' if result.ok else 'NOT OK'}, {result.verdict.figures['jobs']} jobs, "
    words += f"{hits} of {len(result.strikes)} faults counted"
    return "\n    ".join([words, *map(str, result.verdict.violations[:10])])


def as_words(results: list[Result]) -> str:
    strikes = [strike for result in results for strike in result.strikes]
    counted = [strike for strike in strikes if strike.counted]
    kinds = {strike.kind for strike in counted}
    lines = ["", f"{'fault':38}{'done':>6}{'counted':>9}{'recovered in s (median, most)':>32}"]
    done = collections.Counter(strike.kind for strike in strikes)
    for kind in sorted(done):
        of_kind = [strike for strike in counted if strike.kind == kind]
        times = [strike.recovered for strike in of_kind if strike.recovered is not None]
        shown = f"{statistics.median(times):.1f}  {max(times):.1f}" if times else "-"
        lines.append(f"{kind:38}{done[kind]:6}{len(of_kind):9}{shown:>32}")
    lines.append(f"{'all':38}{len(strikes):6}{len(counted):9}   of {len(kinds)} kinds, {len(results)} seed(s)")
    lines.append("(recovered: all that was open at the fault had finished, whatever other faults came meanwhile)")
    lines.append("")
    lines.append("over all seeds; means, medians and mosts are those of the worst one")
    for name in results[0].verdict.figures:
        values = [result.verdict.figures[name] for result in results]
        add = max if any(word in name for word in ("at most", ", most", "longest", "mean", "median")) else sum
        lines.append(f"{name:60}{add(values):>12}")
    lines.append("")
    violations = [violation for result in results for violation in result.verdict.violations]
    for what in (*MUST_BE_ZERO, *sorted({violation.what for violation in violations} - set(MUST_BE_ZERO))):
        lines.append(f"{what:60}{sum(1 for violation in violations if violation.what == what):>12}")
    broken = collections.Counter(violation.promise for violation in violations)
    lines.append("promises: " + "  ".join(f"I{n} {_word(broken[f'I{n}'])}" for n in range(1, 10)))
    for result in results:
        told = list(map(str, result.verdict.violations[:MOST_TOLD]))
        told += [f"… and {more} more"] if (more := len(result.verdict.violations) - MOST_TOLD) > 0 else []
        for trouble in [*told, *(f"campaign: {error}" for error in result.errors)]:
            lines.append(f"seed {result.seed}: {trouble}")
        if result.kept:
            lines.append(f"seed {result.seed}: evidence in {result.kept}; again with --seed {result.seed}")
    return "\n".join(lines)


def _word(violations: int) -> str:
    return f"BROKEN ×{violations}" if violations else "held"
