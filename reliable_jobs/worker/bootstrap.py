"""What a worker or beat process gets: the sweep loop beside it, session settings, and a place for messages that nobody
can run. What the parent process sees of a single message is in worker/requests.py and worker/revocation.py."""

from __future__ import annotations

import atexit
import logging
from typing import Any

from celery import Celery, bootsteps, signals
from django.db import connections
from django.db.backends.signals import connection_created

from reliable_jobs import databases, tasks
from reliable_jobs.compat import register
from reliable_jobs.compat.celery_pool import is_pool, limits_of_worker, pool_of, replace_ended_children
from reliable_jobs.compat.django import driver_of, settings_of
from reliable_jobs.conf import settings
from reliable_jobs.presence import Beacon
from reliable_jobs.run import kept_connections, pools
from reliable_jobs.schedule import SWEEP_TASK
from reliable_jobs.status import ProcessKind
from reliable_jobs.sweep.loop import SweepLoop
from reliable_jobs.worker import presence, revocation, watchdog_steps
from reliable_jobs.worker.parking import ParkingStep
from reliable_jobs.worker.presence import PresenceStep

logger = logging.getLogger(__name__)

#: Seconds between two looks for children that have ended.
CHILDREN_INTERVAL = 0.5
#: A killed worker's statement would run on, its locks held, until the server notices (4.7 s measured; hours for a
#: lost host). Settings that an older server does not know are left out.
POSTGRESQL_SESSION = (
    (140000, "client_connection_check_interval", "2s"),
    (120000, "tcp_user_timeout", "20s"),
    (0, "tcp_keepalives_idle", "10"),
    (0, "tcp_keepalives_interval", "5"),
    (0, "tcp_keepalives_count", "3"),
)


def _on_worker_init(sender: Any = None, **kwargs: Any) -> None:
    app: Celery = sender.app
    try:
        register.verify(load=True)
    except register.IncompatibleLibrary as error:
        raise SystemExit(str(error)) from error  # Celery logs any other exception of a receiver, and goes on
    for alias in databases.candidates():
        if not settings_of(connections[alias]).get("AUTOCOMMIT", True):
            # Celery logs any other exception of a receiver, and goes on.
            raise SystemExit(
                f"reliable_jobs: database {alias!r} has AUTOCOMMIT = False, so no job's transaction would ever be "
                "committed. Remove AUTOCOMMIT from its settings."
            )
    app.steps["consumer"].add(ParkingStep)
    app.steps["worker"].add(ChildrenStep)
    app.steps["worker"].add(SweepStep)
    app.steps["worker"].add(PresenceStep)
    watchdog_steps.install(app)
    connection_created.connect(_prepare_session, dispatch_uid="reliable_jobs.session")
    kept_connections.leave_pools_to_the_parent()


def _on_worker_set_up(instance: Any = None, **kwargs: Any) -> None:
    # Later than worker_init, at which the fixup connects its receivers, and before the pool forks.
    pools.began(pool_of(instance), limits_of_worker(instance))
    if not kept_connections.keep_connections(instance):
        logger.info("Database connections are closed around every task, as Celery does it.")
    if not is_pool(pool_of(instance), "prefork", "solo"):
        # After a reconnect Celery would raise its prefetch count again with each ack. Where the pool's threads send
        # them, they wait for the broker's answer on the connection that the main thread reads from, and hang for good.
        instance.app.conf.worker_enable_prefetch_count_reduction = False


def _prepare_session(connection: Any, **kwargs: Any) -> None:
    if connection.vendor != "postgresql":
        return
    server = driver_of(connection).info.server_version
    known = [(name, value) for version, name, value in POSTGRESQL_SESSION if server >= version]
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT " + ", ".join(["set_config(%s, %s, false)"] * len(known)), [part for pair in known for part in pair]
        )


class ChildrenStep(bootsteps.StartStopStep):
    """Looks for children that have ended. Celery is told of an end by a pipe, which closes a moment before the process
    can be waited for: a busy worker is too early, finds nothing, and looks again up to 5 s later."""

    requires = ("celery.worker.components:Pool",)

    def __init__(self, worker: Any, **kwargs: Any) -> None:
        super().__init__(worker, **kwargs)
        self._timer: Any = None

    def include_if(self, worker: Any) -> bool:
        return is_pool(pool_of(worker), "prefork")

    def register_with_event_loop(self, worker: Any, hub: Any) -> None:
        if self._timer is not None:  # of the loop before the last reconnect
            self._timer.cancel()
        self._timer = hub.call_repeatedly(CHILDREN_INTERVAL, replace_ended_children, worker.pool)


class SweepStep(bootsteps.StartStopStep):
    """The sweep loop beside a worker. A step, because Celery's signal worker_ready is not sent for a worker of
    ``celery.contrib.testing``. After the pool, whose children must not inherit its connections."""

    requires = ("celery.worker.components:Pool", "celery.worker.components:StateDB")

    def include_if(self, worker: Any) -> bool:
        return bool(settings.WORKER_SWEEP_INTERVAL)

    def create(self, worker: Any) -> SweepLoop:
        revocation.remember_old()
        return SweepLoop(
            worker.app,
            actor=f"worker {worker.hostname}",
            interval=settings.WORKER_SWEEP_INTERVAL,
            before=revocation.cancel_newly_revoked,
        )


class _WithoutSweepTicks(logging.Filter):
    """Beat logs every tick; the sweeper's, one a second, would drown the others."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not (isinstance(record.args, tuple) and SWEEP_TASK in record.args)


def _on_beat_init(sender: Any = None, **kwargs: Any) -> None:
    logging.getLogger("celery.beat").addFilter(_WithoutSweepTicks())
    if tasks.beat_loop is None:
        tasks.beat_loop = SweepLoop(sender.app, actor="beat", interval=None, keep_connections=True)
        tasks.beat_loop.start()
        beacon = Beacon(ProcessKind.BEAT)
        beacon.start()
        atexit.register(beacon.stop)


def connect() -> None:
    """Connect the receivers; called once by the app config. They cost nothing in a process that is no worker."""
    signals.worker_init.connect(_on_worker_init, dispatch_uid="reliable_jobs.worker_init")
    signals.celeryd_after_setup.connect(_on_worker_set_up, dispatch_uid="reliable_jobs.celeryd_after_setup")
    signals.beat_init.connect(_on_beat_init, dispatch_uid="reliable_jobs.beat_init")
    signals.beat_embedded_init.connect(_on_beat_init, dispatch_uid="reliable_jobs.beat_embedded_init")
    signals.worker_shutdown.connect(presence.on_shutdown, dispatch_uid="reliable_jobs.worker_shutdown")
    signals.task_revoked.connect(revocation.on_revoked, dispatch_uid="reliable_jobs.task_revoked")
