"""Sites that differ in their database."""

from __future__ import annotations

from typing import Any

from tests.sites.site import POSTGRESQL, Site, databases, entry, postgresql

SQLITE = """
DATABASES = {
    'default': {
        'ENGINE': 'django.db.backends.sqlite3',
        'NAME': BASE_DIR / 'db.sqlite3',
    }
}
"""
SQLITE_ADVISED = """
DATABASES = {
    'default': {
        'ENGINE': 'django.db.backends.sqlite3',
        'NAME': BASE_DIR / 'db.sqlite3',
        'OPTIONS': {
            'transaction_mode': 'IMMEDIATE',
            'timeout': 20,
            'init_command': 'PRAGMA journal_mode=WAL;',
        },
    }
}
"""
MARIADB = """
DATABASES = {
    'default': {
        'ENGINE': 'django.db.backends.mysql',
        'NAME': '$name',
        'USER': 'root',
        'HOST': '$host',
        'PORT': '$port',
$options    }
}
"""
ISOLATION = "\nfrom django.db.backends.postgresql.psycopg_any import IsolationLevel\n"

ORDERS_ROUTER = """
class OrdersRouter:
    def db_for_read(self, model, **hints):
        return 'orders' if model._meta.app_label == 'shop' else None

    db_for_write = db_for_read

    def allow_migrate(self, db, app_label, **hints):
        if app_label == 'shop':
            return db == 'orders'
        return True if app_label == 'reliable_jobs' else db == 'default'
"""
REPLICA_ROUTER = """
import random


class PrimaryReplicaRouter:
    def db_for_read(self, model, **hints):
        return random.choice(['replica'])

    def db_for_write(self, model, **hints):
        return 'default'

    def allow_relation(self, obj1, obj2, **hints):
        return True

    def allow_migrate(self, db, app_label, model_name=None, **hints):
        return True
"""
REPLICA_FIRST = databases(
    entry("replica", "'OPTIONS': {'options': '-c default_transaction_read_only=on'},"), entry("default")
)
SECOND = "${name}_second"

# PostgreSQL: "Applications using this level must be prepared to retry transactions due to serialization failures."
RETRIED = """
import functools

from django.db import OperationalError


def retried(view):
    @functools.wraps(view)
    def again(request, *args, **kwargs):
        for _ in range(9):
            try:
                return view(request, *args, **kwargs)
            except OperationalError as error:
                if 'could not serialize' not in str(error):
                    raise
        return view(request, *args, **kwargs)

    return again
"""
SERIALIZABLE: dict[str, Any] = {
    "text": postgresql("'OPTIONS': {'isolation_level': IsolationLevel.SERIALIZABLE},", before=ISOLATION),
    "files": {"shop/retried.py": RETRIED},
    "replaced": (
        ("shop/views.py", "from shop import tasks\n", "from shop import tasks\nfrom shop.retried import retried\n"),
        ("shop/views.py", "@csrf_exempt\n", "@csrf_exempt\n@retried\n"),
    ),
}


def mariadb(*lines: str) -> str:
    return MARIADB.replace("$options", "".join(f"        {line}\n" for line in lines))


def site(name: str, varies: str, text: str, **more: object) -> Site:
    return Site(name, varies, "databases", databases=text, **more)  # type: ignore[arg-type]


WITH_POOL = ("django>=6.0,<6.1", "celery>=5.7,<5.8", "psycopg[binary,pool]>=3.2")
WITH_MYSQL = ("django>=6.0,<6.1", "celery>=5.7,<5.8", "mysqlclient>=2.2")

DATABASES = [
    site("conn-max-age-0", "`CONN_MAX_AGE` 0", postgresql("'CONN_MAX_AGE': 0,")),
    site("conn-max-age-60", "`CONN_MAX_AGE` 60", postgresql("'CONN_MAX_AGE': 60,")),
    site("conn-max-age-none", "`CONN_MAX_AGE` None", postgresql("'CONN_MAX_AGE': None,")),
    site(
        "pool",
        "`OPTIONS['pool']` True",
        postgresql("'OPTIONS': {'pool': True},"),
        requirements=WITH_POOL,
        counted=False,
    ),
    site(
        "pgbouncer-told",
        "PgBouncer in transaction mode, `DISABLE_SERVER_SIDE_CURSORS` True",
        postgresql("'DISABLE_SERVER_SIDE_CURSORS': True,"),
        database="pgbouncer",
    ),
    site("pgbouncer", "PgBouncer in transaction mode, Django not told", POSTGRESQL, database="pgbouncer"),
    site(
        "repeatable-read",
        "isolation REPEATABLE READ",
        postgresql("'OPTIONS': {'isolation_level': IsolationLevel.REPEATABLE_READ},", before=ISOLATION),
    ),
    site(
        "serializable",
        "isolation SERIALIZABLE, requests are retried",
        **SERIALIZABLE,
    ),
    site(
        "pgbouncer-serializable",
        "PgBouncer in transaction mode, isolation SERIALIZABLE, requests are retried",
        **SERIALIZABLE,
        database="pgbouncer",
    ),
    site("server-side-binding", "`server_side_binding` True", postgresql("'OPTIONS': {'server_side_binding': True},")),
    site(
        "prepared-statements",
        "`server_side_binding` True, `prepare_threshold` 5, `CONN_MAX_AGE` None",
        postgresql("'CONN_MAX_AGE': None, 'OPTIONS': {'server_side_binding': True, 'prepare_threshold': 5},"),
    ),
    site(
        "schema",
        "another schema than public, by `search_path`",
        postgresql("'OPTIONS': {'options': '-c search_path=company'},"),
        prepare=("CREATE SCHEMA company",),
    ),
    site("atomic-requests", "`ATOMIC_REQUESTS` True", postgresql("'ATOMIC_REQUESTS': True,")),
    site(
        "use-tz-false",
        "`USE_TZ` False; times are given with their zone",
        POSTGRESQL,
        settings="USE_TZ = False\nTIME_ZONE = CELERY_TIMEZONE = 'America/New_York'\n",
    ),
    site(
        "second-database",
        "a second database without our tables, and no router",
        databases(entry("default"), entry("reports", database=SECOND)),
    ),
    site(
        "second-database-router",
        "orders and their jobs in a second database, by a router",
        databases(entry("default"), entry("orders", database=SECOND)),
        files={"proj/routers.py": ORDERS_ROUTER},
        settings="DATABASE_ROUTERS = ['proj.routers.OrdersRouter']\n",
        replaced=(
            ("shop/views.py", "transaction.atomic()", "transaction.atomic(using='orders')"),
            ("shop/views.py", "Stat.objects", "Stat.objects.using('orders')"),
        ),
        migrate=(("migrate", "-v", "0"), ("migrate", "-v", "0", "--database", "orders")),
        alias="orders",
    ),
    site(
        "replica-router",
        "Django's PrimaryReplicaRouter, the replica first in `DATABASES`",
        REPLICA_FIRST,
        files={"proj/routers.py": REPLICA_ROUTER},
        settings="DATABASE_ROUTERS = ['proj.routers.PrimaryReplicaRouter']\n",
    ),
    site(
        "mariadb",
        "MariaDB by mysqlclient, READ COMMITTED as Django sets it",
        mariadb(),
        database="mariadb",
        requirements=WITH_MYSQL,
    ),
    site(
        "mariadb-repeatable-read",
        "MariaDB, REPEATABLE READ",
        mariadb("'OPTIONS': {'isolation_level': 'repeatable read'},"),
        database="mariadb",
        requirements=WITH_MYSQL,
        named="reliable_jobs.W020",
    ),
    site(
        "mariadb-time-zone",
        "MariaDB, session time zone +05:00",
        mariadb("'OPTIONS': {'init_command': \"SET time_zone = '+05:00'\"},"),
        database="mariadb",
        requirements=WITH_MYSQL,
    ),
    # Whoever writes to the one file may wait for the others as long as `timeout` says, 5 s by default.
    site(
        "sqlite",
        "SQLite as startproject configures it",
        SQLITE,
        database="sqlite",
        named="reliable_jobs.W021",
        budget=5 + 3.0,
    ),
    site(
        "sqlite-advised",
        "SQLite as docs/settings.md advises",
        SQLITE_ADVISED,
        database="sqlite",
        budget=20 + 3.0,
    ),
]
