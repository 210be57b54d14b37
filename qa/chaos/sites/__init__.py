"""The sites that a campaign can take place on: ``--site NAME``.

A site is a Django project's settings, written out by hand in a module of this package, the servers that they need, the
workers' pools, and the packages that are not among the test suite's. Which faults strike it follows from its servers
and pools; what else does not apply there is named with the reason.
"""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Site:
    """
    Args:
        module: its settings, a module of this package.
        database: "postgresql", "mariadb" or "sqlite".
        broker: "rabbitmq" or "redis".
        pooler: whether PgBouncer stands before the database.
        workers: (name, host, pool, concurrency) of each.
        packages: what its environment needs beside requirements-test.txt.
        not_here: kinds of faults (as in a shell: ``*``) that its servers and pools allow, and why they don't apply.
    """

    module: str
    about: str
    database: str = "postgresql"
    broker: str = "rabbitmq"
    pooler: bool = False
    workers: tuple[tuple[str, str, str, int], ...] = (
        ("prefork", "work-a", "prefork", 3),
        ("prefork-b", "work-b", "prefork", 2),
        ("threads", "work-b", "threads", 4),
    )
    packages: tuple[str, ...] = ()
    not_here: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def settings(self) -> str:
        return f"{__name__}.{self.module}"

    def reason_against(self, kind: str) -> str | None:
        """Why a kind of fault does not apply here, if it does not."""
        return next((why for pattern, why in self.not_here.items() if fnmatch.fnmatch(kind, pattern)), None)


def _all_of(pool: str, *concurrency: int) -> tuple[tuple[str, str, str, int], ...]:
    hosts = ("work-a", "work-b", "work-b")
    return tuple((f"{pool}-{n}", hosts[n], pool, number) for n, number in enumerate(concurrency))


SITES = {
    "plain": Site("plain", "PostgreSQL, RabbitMQ, prefork and threads"),
    "mariadb": Site(
        "mariadb",
        "MariaDB with mysqlclient, READ COMMITTED (Django's default there)",
        database="mariadb",
        packages=("mysqlclient>=2.2",),
    ),
    "mariadb-rr": Site(
        "mariadb_rr",
        "MariaDB, REPEATABLE READ (the server's default)",
        database="mariadb",
        packages=("mysqlclient>=2.2",),
    ),
    "redis": Site(
        "redis",
        "Redis as broker and result backend, visibility timeout 20 s",
        broker="redis",
        packages=("redis>=5",),
    ),
    "threads": Site("plain", "every worker with threads", workers=_all_of("threads", 4, 4, 2)),
    "gevent": Site(
        "plain",
        "every worker with gevent",
        workers=_all_of("gevent", 20, 10),
        packages=("gevent>=24",),
    ),
    "solo": Site("plain", "every worker solo", workers=_all_of("solo", 1, 1, 1)),
    "pgbouncer": Site("pgbouncer", "PgBouncer in transaction mode, Django not told", pooler=True),
    "conn0": Site("conn0", "connections closed after every task: CONN_MAX_AGE and WORKER_CONN_MAX_AGE 0"),
    "ledger": Site("ledger", "the row is the result: LedgerBackend and no other result backend"),
    "no-results": Site("no_results", "no result backend at all"),
    "serializable": Site("serializable", "PostgreSQL, SERIALIZABLE for every transaction"),
    "sqlite": Site(
        "sqlite",
        "a SQLite file in WAL mode, as the README advises; RabbitMQ",
        database="sqlite",
        workers=(("prefork", "work-a", "prefork", 2), ("threads", "work-b", "threads", 2)),
    ),
}
