"""Sites that differ in their broker."""

from __future__ import annotations

from tests.sites.site import AMQP, Site

TLS = """
import ssl

CELERY_BROKER_URL = 'amqps://guest:guest@localhost:$port_tls//'
CELERY_BROKER_USE_SSL = {'ca_certs': '$authority', 'cert_reqs': ssl.CERT_REQUIRED}
"""
FILESYSTEM = """
CELERY_BROKER_URL = 'filesystem://'
CELERY_BROKER_TRANSPORT_OPTIONS = {
    'data_folder_in': str(BASE_DIR / 'messages'),
    'data_folder_out': str(BASE_DIR / 'messages'),
    'control_folder': str(BASE_DIR / 'control'),
}
"""
WITH_REDIS = ("django>=6.0,<6.1", "celery[redis]>=5.7,<5.8", "psycopg[binary]>=3.2")


def redis(name: str, varies: str, settings: str = "", **more: object) -> Site:
    return Site(
        name,
        varies,
        "brokers",
        broker="redis",
        requirements=WITH_REDIS,
        settings=settings,
        **more,  # type: ignore[arg-type]
    )


BROKERS = [
    Site(
        "quorum",
        "RabbitMQ, quorum queue",
        "brokers",
        brokers=AMQP + "CELERY_TASK_DEFAULT_QUEUE_TYPE = 'quorum'\nCELERY_TASK_DEFAULT_EXCHANGE_TYPE = 'topic'\n",
    ),
    Site("tls", "RabbitMQ over TLS", "brokers", broker="rabbitmq-tls", brokers=TLS),
    redis("redis", "Redis"),
    redis(
        "redis-visibility",
        "Redis, visibility timeout 20 s and tasks of 40 s",
        "CELERY_BROKER_TRANSPORT_OPTIONS = {'visibility_timeout': 20}\n",
        work_seconds=40.0,
        orders=16,
        seconds=300.0,
        faults=("kill",),
        named="reliable_jobs.W004",
    ),
    redis("redis-flushdb", "Redis, FLUSHDB while jobs wait", faults=("kill", "flush")),
    redis(
        "redis-stopped",
        "Redis, stopped for 8 s with SIGSTOP",
        faults=("kill", "stop_for_some_seconds"),
        budget=1.5,
    ),
    Site(
        "filesystem",
        "kombu's filesystem broker",
        "brokers",
        broker="filesystem",
        brokers=FILESYSTEM,
        files={"messages/.keep": "", "control/.keep": ""},
    ),
    Site(
        "memory",
        "kombu's memory broker, which other processes don't see",
        "brokers",
        broker="memory",
        brokers="CELERY_BROKER_URL = 'memory://'\n",
        refused="reliable_jobs.W015",
    ),
]
