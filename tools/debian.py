"""Sees to it that what the tests need beside PostgreSQL and RabbitMQ is installed: servers and headers, GNU gettext,
Prometheus.

python3 tools/debian.py ensure

Where they are missing: Debian's packages, installed as root; otherwise it says what to do. Standard library only.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

#: Package by one of its programs. The last ones are for building mysqlclient and psycopg's C implementation.
PACKAGES = {
    "redis-server": "redis-server",
    "pgbouncer": "pgbouncer",
    "mariadbd": "mariadb-server",
    "mariadb_config": "libmariadb-dev",
    "pg_config": "libpq-dev",
    "pkg-config": "pkg-config",
    "gcc": "gcc",
    "openssl": "openssl",
    "msgcmp": "gettext",
    "prometheus": "prometheus",
}


def missing() -> list[str]:
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
    return [package for program, package in PACKAGES.items() if shutil.which(program, path=path) is None]


def help_text() -> str:
    return f"The tests need Debian's packages, or their like: apt-get install {' '.join(missing())}"


def ensure() -> bool:
    """Install what is missing, where that can be done. Returns whether all is there."""
    packages = missing()
    if packages and os.geteuid() == 0 and shutil.which("apt-get"):
        print(f"Installing Debian's {' '.join(packages)}", flush=True)
        # No service is to be started: the tests run private servers.
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
        for command in (["update"], ["install", "-y", "--no-install-recommends", *packages]):
            subprocess.run(
                ["apt-get", *command],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.STDOUT,
                check=False,
            )
    return not missing()


def main() -> int:
    if sys.argv[1:] != ["ensure"]:
        print(__doc__)
        return 2
    if not ensure():
        print(help_text(), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
