"""A private PostgreSQL."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

from tests.support.private_servers.handshakes import postgres_auth
from tests.support.private_servers.server import (
    HOST,
    Server,
    ServerMissing,
)


class PrivatePostgres(Server):
    """A PostgreSQL cluster with trust authentication and a superuser ``postgres``."""

    name = "postgres"
    user = "postgres"

    def __init__(
        self, *, max_connections: int = 100, settings: dict[str, str] | None = None, parent: Path | None = None
    ) -> None:
        """``parent``: where its directory goes, instead of where temporary files usually do."""
        self._bindir = _postgres_bindir()
        self.max_connections = max_connections
        self.settings = settings or {}
        super().__init__(parent)

    @property
    def url(self) -> str:
        return f"postgresql://postgres@{HOST}:{self.port}/postgres"

    def answers(self) -> bool:
        return postgres_auth(HOST, self.port) == "ok"

    def start(self) -> None:
        """Start the server (a second start is a no-op); the first one creates the cluster."""
        if self.running:
            return
        data = self.dir / "data"
        env = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "HOME": str(self.dir)}
        if not data.exists():
            options = ["-U", "postgres", "--auth=trust", "--encoding=UTF8", "--no-locale", "--no-sync"]
            self._run([str(self._bindir / "initdb"), "-D", str(data), *options], env)
        settings = {
            "listen_addresses": HOST,
            "unix_socket_directories": str(self.dir),
            "max_connections": str(self.max_connections),
            **self.settings,
        }
        argv = [str(self._bindir / "postgres"), "-D", str(data), "-p", str(self.port)]
        self._spawn([*argv, *(word for key, value in settings.items() for word in ("-c", f"{key}={value}"))], env)
        self._wait_for_start()

    def stop(self, mode: str = "fast") -> None:
        """``fast`` rolls back and disconnects; ``immediate`` is a crash with recovery at the next start."""
        self._signal_and_wait({"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}[mode])

    def restart(self, mode: str = "fast") -> None:
        self.stop(mode)
        self.start()


def _postgres_bindir() -> Path:
    candidates = []
    if pg_config := shutil.which("pg_config"):
        said = subprocess.run([pg_config, "--bindir"], capture_output=True, text=True, timeout=10)
        candidates.append(Path(said.stdout.strip() or "/nonexistent"))
    if initdb := shutil.which("initdb"):
        candidates.append(Path(initdb).resolve().parent)
    versions = Path("/usr/lib/postgresql").glob("*/bin")
    candidates += sorted(versions, key=lambda path: float(path.parent.name), reverse=True)
    for bindir in candidates:
        if (bindir / "initdb").exists() and (bindir / "postgres").exists():
            return bindir
    raise ServerMissing("PostgreSQL's initdb and postgres are not installed")
