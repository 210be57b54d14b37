"""A private PgBouncer."""

from __future__ import annotations

import os

from tests.support.private_servers.handshakes import postgres_auth
from tests.support.private_servers.server import (
    HOST,
    Server,
    program,
)


class PgBouncer(Server):
    """PgBouncer before one PostgreSQL server, for all its databases, without passwords."""

    name = "pgbouncer"
    user = "postgres"

    def __init__(
        self, postgres_port: int, *, pool_mode: str = "transaction", settings: dict[str, str] | None = None
    ) -> None:
        """``settings``: further lines of its configuration."""
        self._program = program("pgbouncer")
        super().__init__()
        lines = {
            "listen_addr": HOST,
            "listen_port": str(self.port),
            "unix_socket_dir": "",
            "auth_type": "any",
            "pool_mode": pool_mode,
            "max_client_conn": "500",
            "default_pool_size": "20",
            "admin_users": "postgres",
            "ignore_startup_parameters": "extra_float_digits",
            **(settings or {}),
        }
        self._configuration = self.dir / "pgbouncer.ini"
        self._configuration.write_text(
            f"[databases]\n* = host={HOST} port={postgres_port} user=postgres\n[pgbouncer]\n"
            + "".join(f"{name} = {value}\n" for name, value in lines.items())
        )

    @property
    def url(self) -> str:
        return f"postgresql://postgres@{HOST}:{self.port}/postgres"

    def answers(self) -> bool:
        return postgres_auth(HOST, self.port, database="pgbouncer") == "ok"

    def start(self) -> None:
        """Start it (a second start is a no-op)."""
        if not self.running:
            self._spawn([self._program, str(self._configuration)], {"PATH": os.environ.get("PATH", os.defpath)})
            self._wait_for_start()

    def stop(self) -> None:
        """At once, with all its connections, as its service's restart does."""
        super().stop()
