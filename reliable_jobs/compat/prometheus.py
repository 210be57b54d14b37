"""prometheus-client: how the children of a worker's pool add up. Nothing here imports it before it is asked."""

from __future__ import annotations

from reliable_jobs.compat.register import Library

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
