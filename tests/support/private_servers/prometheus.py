"""A private Prometheus."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from tests.support.private_servers.server import HOST, Server, program


class PrivatePrometheus(Server):
    """Prometheus with a configuration of the caller's, and nothing stored beyond its life."""

    name = "prometheus"

    def __init__(self, configuration: str, files: dict[str, str]) -> None:
        """``files``: others that the configuration names, by name."""
        self._program = program("prometheus")
        super().__init__()
        for name, text in {"prometheus.yml": configuration, **files}.items():
            (self.dir / name).write_text(text)

    def get(self, path: str) -> Any:
        """What its HTTP API answers."""
        with urllib.request.urlopen(f"http://{HOST}:{self.port}{path}", timeout=60) as answer:
            return json.load(answer)["data"]

    def answers(self) -> bool:
        try:
            urllib.request.urlopen(f"http://{HOST}:{self.port}/-/ready", timeout=1).close()
        except (OSError, urllib.error.URLError):
            return False
        return True

    def start(self) -> None:
        """Start it (a second start is a no-op)."""
        if not self.running:
            data = Path(self.dir) / "data"
            options = [f"--config.file={self.dir / 'prometheus.yml'}", f"--storage.tsdb.path={data}"]
            options.append(f"--web.listen-address={HOST}:{self.port}")
            self._spawn([self._program, *options], {"PATH": os.environ.get("PATH", os.defpath)})
            self._wait_for_start()
