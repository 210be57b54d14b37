"""A private MariaDB."""

from __future__ import annotations

import os
import subprocess

from tests.support.private_servers.handshakes import mysql_greets
from tests.support.private_servers.server import (
    HOST,
    START_SECONDS,
    Server,
    ServerFailed,
    program,
)


class PrivateMariaDB(Server):
    """A MariaDB server whose ``root`` may come in over TCP without a password."""

    name = "mariadb"
    user = "mysql"

    def __init__(self, *, settings: dict[str, str] | None = None) -> None:
        """``settings``: options of the server, as ``{"max-connections": "50"}``."""
        self._server_program = program("mariadbd", "mysqld")
        self._install_program = program("mariadb-install-db", "mysql_install_db")
        self._client_program = program("mariadb", "mysql")
        self.settings = settings or {}
        super().__init__()

    @property
    def url(self) -> str:
        return f"mysql://root@{HOST}:{self.port}/"

    def answers(self) -> bool:
        return mysql_greets(HOST, self.port)

    def start(self) -> None:
        """Start the server (a second start is a no-op); the first one creates its tables."""
        if self.running:
            return
        data = self.dir / "data"
        env = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "HOME": str(self.dir)}
        # A second --user would be an error: the process has the account's ids already.
        if not data.exists():
            options = ["--auth-root-authentication-method=normal", "--skip-test-db", "--skip-name-resolve"]
            self._run([self._install_program, "--no-defaults", f"--datadir={data}", *options], env)
        settings = {
            "datadir": str(data),
            "port": str(self.port),
            "bind-address": HOST,
            "socket": str(self.dir / "socket"),
            "pid-file": str(self.dir / "pid"),
            "innodb-buffer-pool-size": "64M",
            "innodb-log-file-size": "32M",
            **self.settings,
        }
        options = [f"--{name}={value}" for name, value in settings.items()]
        self._spawn([self._server_program, "--no-defaults", "--skip-name-resolve", *options], env)
        self._wait_for_start()

    def sql(self, statement: str, database: str = "") -> str:
        """Run statements with the command line client as ``root``, and return its rows, tabs between columns."""
        options = ["--no-defaults", "-h", HOST, "-P", str(self.port), "-u", "root", "--batch", "--skip-column-names"]
        done = subprocess.run(
            [self._client_program, *options, "-e", statement, *([database] if database else [])],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=START_SECONDS,
        )
        if done.returncode:
            raise ServerFailed(f"{statement} failed\n{done.stdout}{done.stderr}")
        return done.stdout
