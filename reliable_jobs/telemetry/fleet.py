"""What the databases say of the site as gauges for Prometheus: no more than eight queries each, bounded as the admin's
first page is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from reliable_jobs import databases, lifecycle, presence
from reliable_jobs.dispatch.publisher import publisher
from reliable_jobs.health import figures
from reliable_jobs.health.waiting import oldest_unpublished
from reliable_jobs.models import PauseKind
from reliable_jobs.status import ProcessKind

PREFIX = "reliable_jobs_"
_OF_QUEUES = {
    "waiting": "Jobs that are due, published or not.",
    "delayed": "Jobs that are not due yet.",
    "running": "Jobs with a committed claim. The first run of an atomic task does not show.",
    "consumers": "Workers that consume the queue.",
    "oldest_due_seconds": "Since the oldest waiting job became due; 0 where none is.",
    "paused": "1 where the queue is paused.",
    "ended_per_second": f"Jobs that ended, on average over the last {figures.RATE_MINUTES} minutes.",
}
_OF_KINDS = {
    "failed_last_day": f"Jobs that failed within the last 24 hours, of the last {figures.FAILING_SHOWN} kinds.",
    "failed_last_hour": "Of them, those that failed within the last hour.",
    "retrying": "Jobs that failed and wait for another attempt.",
}


class Fleet(Collector):
    """Asks the databases each time that it is collected.

    Args:
        aliases: of the databases; all that hold jobs by default.
    """

    def __init__(self, aliases: Sequence[str] | None = None) -> None:
        self._aliases = aliases

    def describe(self) -> Iterable[Metric]:
        """Without it a registry would collect once to learn the names."""
        return []

    def collect(self) -> Iterable[Metric]:
        """
        Raises:
            django.db.Error: a database could not be read.
        """
        of_queues = {name: _gauge(name, text, "queue") for name, text in _OF_QUEUES.items()}
        of_kinds = {name: _gauge(name, text, "task", "error") for name, text in _OF_KINDS.items()}
        text = f"Runs that ended within the last {figures.RATE_MINUTES} minutes; retried and crashed ones begin again."
        lately = _gauge("ended_lately", text, "task", "ending")
        processes = _gauge("processes", "Processes that say that they are there.", "kind")
        cut_off = _gauge("processes_without_broker", "Of them, those that have no connection to the broker.", "kind")
        unswept = _gauge("unswept_seconds", "For how long a job has been due that no sweeper has published; else 0.")
        for alias in databases.aliases() if self._aliases is None else self._aliases:
            seen = presence.processes(alias)
            now = presence.clock(seen)
            living = [one for one in seen if one.works]
            ended = figures.ended_lately(alias, now)
            for (task, ending), number in _by_task(ended).items():
                lately.add_metric([alias, task, ending], number)
            for depth in figures.depths(alias, now, living, lifecycle.paused(alias, PauseKind.QUEUE), ended):
                values = {
                    "waiting": depth.waiting,
                    "delayed": depth.delayed,
                    "running": depth.running,
                    "consumers": depth.consumers,
                    "oldest_due_seconds": depth.oldest.total_seconds() if depth.oldest else 0.0,
                    "paused": int(depth.paused is not None),
                    "ended_per_second": depth.rate or 0.0,
                }
                for name, value in values.items():
                    of_queues[name].add_metric([alias, depth.queue], value)
            _add_kinds(of_kinds, alias, figures.failing(alias, now))
            for kind in ProcessKind:
                there = [one for one in living if one.kind == kind]
                processes.add_metric([alias, kind], len(there))
                cut_off.add_metric([alias, kind], sum(one.broker_ok is False for one in there))
            unswept.add_metric([alias], oldest_unpublished(alias) or 0.0)
        breaker = GaugeMetricFamily(
            f"{PREFIX}breaker_open", "1 where the process that answers could not reach the broker lately."
        )
        breaker.add_metric([], float(publisher().breaker_open))
        return [*of_queues.values(), *of_kinds.values(), lately, processes, cut_off, unswept, breaker]


def _gauge(name: str, text: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(PREFIX + name, text, labels=["database", *labels])


def _by_task(ended: Iterable[figures.Ended]) -> Counter[tuple[str, str]]:
    counted: Counter[tuple[str, str]] = Counter()
    for one in ended:
        counted[one.task, one.ending] += one.number
    return counted


def _add_kinds(of_kinds: dict[str, GaugeMetricFamily], alias: str, found: Iterable[figures.Failing]) -> None:
    """Releases are added up: a label for each would never end."""
    counted: dict[str, Counter[tuple[str, str]]] = {name: Counter() for name in of_kinds}
    for one in found:
        numbers = {"failed_last_day": one.failed, "failed_last_hour": one.lately, "retrying": one.retrying}
        for name, number in numbers.items():
            counted[name][one.task, one.error] += number
    for name, kinds in counted.items():
        for (task, error), number in kinds.items():
            of_kinds[name].add_metric([alias, task, error], number)
