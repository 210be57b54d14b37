"""prometheus-client: how the children of a worker's pool add up, and how many values are observed at once. Nothing here
imports it before it is asked."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from reliable_jobs.compat.register import Library

if TYPE_CHECKING:
    from prometheus_client import Histogram

PROMETHEUS = Library("prometheus-client", "prometheus-client", tried="0.20 to 0.26", optional=True)


@PROMETHEUS.undocumented(
    "values.ValueClass",
    inside="prometheus_client.metrics:Counter._metric_init",
    tests=["test_prometheus"],
)
@PROMETHEUS.undocumented(
    "values.get_value_class", at="prometheus_client.values:get_value_class", tests=["test_prometheus"]
)
def share_from_now_on() -> None:
    """Metrics that are made from here on are kept in files of PROMETHEUS_MULTIPROC_DIR. Without this, only where that
    variable was set before anybody imported prometheus_client."""
    from prometheus_client import values

    values.ValueClass = values.get_value_class()


@PROMETHEUS.undocumented(
    "Histogram._buckets",
    "Histogram._sum",
    inside="prometheus_client.metrics:Histogram._metric_init",
    tests=["test_counting"],
)
@PROMETHEUS.undocumented(
    "values.MutexValue.inc",
    at="prometheus_client.values:MutexValue.inc",
    takes=["amount"],
    tests=["test_counting"],
)
def observe_many(histogram: Histogram, buckets: Iterable[int], total: float) -> None:
    """Add to a histogram what many calls of its ``observe()`` would: it takes one value at a time, and each call writes
    to the files of PROMETHEUS_MULTIPROC_DIR.

    Args:
        histogram: with values for its labels, if it has labels.
        buckets: for each bucket the number of values that lie in it and in none before it; the last one is ``+Inf``.
        total: the sum of all values.
    """
    for bucket, count in zip(histogram._buckets, buckets, strict=True):
        if count:
            bucket.inc(count)
    histogram._sum.inc(total)
