"""A private Redis."""

from __future__ import annotations

import os
import signal
import socket

from tests.support.private_servers.handshakes import redis_pong
from tests.support.private_servers.server import (
    HOST,
    Server,
    ServerFailed,
    program,
)


class PrivateRedis(Server):
    """A Redis server in which nothing but memory holds what it knows, unless ``durable``."""

    name = "redis"

    def __init__(self, *, durable: bool = False, settings: dict[str, str] | None = None) -> None:
        """
        Args:
            durable: write each command to disk before it is answered, so that a restart forgets nothing.
            settings: further lines of its configuration.
        """
        self._program = program("redis-server")
        self.settings = {
            "save": '""',
            "appendonly": "yes" if durable else "no",
            "appendfsync": "always",
            **(settings or {}),
        }
        super().__init__()

    @property
    def url(self) -> str:
        return f"redis://{HOST}:{self.port}/0"

    def answers(self) -> bool:
        return redis_pong(HOST, self.port)

    def start(self) -> None:
        """Start the server (a second start is a no-op)."""
        if self.running:
            return
        lines = {"bind": HOST, "port": str(self.port), "dir": str(self.dir), **self.settings}
        configuration = self.dir / "redis.conf"
        configuration.write_text("".join(f"{name} {value}\n" for name, value in lines.items()))
        self._spawn([self._program, str(configuration)], {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"})
        self._wait_for_start()

    def stop(self) -> None:
        """A clean shutdown. What is not durable is gone."""
        super().stop()

    def pause(self) -> None:
        """SIGSTOP: it accepts connections (the kernel does) and answers nothing."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def command(self, *words: str) -> str:
        """Run one command with a short answer (a status, a number, a string) and return it.

        Raises:
            ServerFailed: Redis answered with an error.
        """
        with socket.create_connection((HOST, self.port), timeout=5) as conn, conn.makefile("rb") as replies:
            encoded = [word.encode() for word in words]
            parts = [b"*%d\r\n" % len(encoded), *(b"$%d\r\n%s\r\n" % (len(word), word) for word in encoded)]
            conn.sendall(b"".join(parts))
            answer = replies.readline().rstrip(b"\r\n")
            if answer[:1] == b"$" and answer != b"$-1":
                return replies.read(int(answer[1:])).decode()
        if answer[:1] == b"-":
            raise ServerFailed(f"redis: {' '.join(words)}: {answer.decode()}")
        return answer[1:].decode()

    def depth(self, queue: str) -> int:
        """Messages of the queue that no worker has taken (of all of Celery's default priority steps)."""
        names = [queue, *(f"{queue}\x06\x16{priority}" for priority in (3, 6, 9))]
        return sum(int(self.command("LLEN", name)) for name in names)

    def unacknowledged(self) -> int:
        """Messages that workers have taken and not acknowledged."""
        return int(self.command("HLEN", "unacked"))
