"""Sites that differ in the worker's pool, and in who publishes."""

from __future__ import annotations

from tests.sites.site import Site

NEWEST = ("django>=6.0,<6.1", "celery>=5.7,<5.8")
BINARY = "psycopg[binary]>=3.2"


POOLS = [
    Site("threads", "`-P threads -c 4`", "pools", pool="threads", concurrency=4),
    Site("solo", "`-P solo`", "pools", pool="solo", concurrency=1),
    Site(
        "gevent",
        "`-P gevent -c 10`",
        "pools",
        pool="gevent",
        concurrency=10,
        requirements=(*NEWEST, BINARY, "gevent>=24.11"),
    ),
    Site(
        "redis-gevent",
        "Redis and `-P gevent -c 10`",
        "pools",
        pool="gevent",
        concurrency=10,
        broker="redis",
        requirements=("django>=6.0,<6.1", "celery[redis]>=5.7,<5.8", BINARY, "gevent>=24.11"),
    ),
    Site(
        "eventlet",
        "`-P eventlet -c 10`, psycopg in Python",
        "pools",
        pool="eventlet",
        concurrency=10,
        requirements=(*NEWEST, "psycopg>=3.2", "eventlet>=0.40"),
    ),
    Site(
        "eventlet-binary",
        "`-P eventlet -c 10`, psycopg in C",
        "pools",
        pool="eventlet",
        concurrency=10,
        requirements=(*NEWEST, BINARY, "eventlet>=0.40"),
        refused="psycopg waits in C",
    ),
    Site(
        "max-tasks-per-child",
        "`--max-tasks-per-child=5`",
        "pools",
        worker=("--max-tasks-per-child=5",),
    ),
    Site("autoscale", "`--autoscale=4,1`", "pools", concurrency=4, worker=("--autoscale=4,1",)),
    Site(
        "relay",
        "`DISPATCH` relay and one `reliable_jobs_relay`",
        "pools",
        relay=True,
        settings="RELIABLE_JOBS = {'DISPATCH': 'relay'}\n",
    ),
    Site("no-beat", "neither beat nor results: the sweeper beside the worker does it all", "pools", extras=()),
]
