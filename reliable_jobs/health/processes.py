"""Workers, beats and relays, by what they said of themselves."""

from __future__ import annotations

from collections.abc import Iterator

from reliable_jobs.conf import settings
from reliable_jobs.health.finding import Finding, Severity
from reliable_jobs.presence.seen import Seen, State, processes
from reliable_jobs.status import ProcessKind

AREA = "processes"


def findings(alias: str) -> Iterator[Finding]:
    """
    Raises:
        django.db.Error: the database can't be asked.
    """
    if not settings.PRESENCE_INTERVAL:
        return
    seen = processes(alias)
    there = [one for one in seen if one.works]
    yield Finding(Severity.INFO, AREA, _counted(there))
    # A site whose beat runs without reliable_jobs' scheduler, or that has none on purpose, has never seen one.
    for kind in (ProcessKind.WORKER, ProcessKind.BEAT):
        last = next((one for one in seen if one.kind == kind), None)
        if last is not None and not last.works:
            yield Finding(
                Severity.WARNING,
                AREA,
                f"No {kind} is there. The last one, {last.name}, was seen {_ago(last)} and "
                f"{'ended by itself' if last.state == State.ENDED else 'did not say that it ends'}.",
                f"Start a {kind}; its supervisor's log says why the last one is gone.",
            )
    for one in there:
        if one.broker_ok is False:
            yield Finding(
                Severity.WARNING,
                AREA,
                f"{one.name} (pid {one.pid}) has no connection to the broker, seen {_ago(one)}.",
                "See its log, and whether its host reaches the broker.",
            )
        if one.state == State.SILENT:
            yield Finding(
                Severity.WARNING,
                AREA,
                f"{one.name} (pid {one.pid}) was last seen {_ago(one)}.",
                "It may be in one long call, or its host or its database is slow: look at it there.",
            )


def _counted(there: list[Seen]) -> str:
    if not there:
        return "None is there."
    parts = []
    for kind in ProcessKind:
        names = [one.name for one in there if one.kind == kind]
        if names:
            parts.append(f"{len(names)} {kind}: {', '.join(sorted(names)[:5])}{' …' if len(names) > 5 else ''}")
    releases = sorted({one.release or "none" for one in there})
    return f"{'; '.join(parts)}. Release: {', '.join(releases)}."


def _ago(one: Seen) -> str:
    return f"{one.ago.total_seconds():.0f} s ago"
