"""A private RabbitMQ."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.support.private_servers.handshakes import amqp_auth
from tests.support.private_servers.server import (
    HOST,
    START_SECONDS,
    Server,
    ServerMissing,
    accepts,
    free_port,
    kill_family,
    wait_until,
)


class PrivateRabbitMQ(Server):
    """A RabbitMQ node with its own cookie, port mapper and data directory, no plugins, and guest/guest."""

    name = "rabbitmq"

    def __init__(self) -> None:
        self._bindir = _rabbitmq_bindir()
        self._epmd_program = shutil.which("epmd")
        if self._epmd_program is None:
            raise ServerMissing("epmd (part of Erlang) is not on PATH")
        super().__init__()
        self.epmd_port, self.dist_port = free_port(), free_port()
        (self.dir / "rabbitmq.conf").write_text(
            f"listeners.tcp.1 = {HOST}:{self.port}\n"
            "vm_memory_high_watermark.relative = 0.4\n"
            "disk_free_limit.absolute = 1MB\n"
        )
        (self.dir / "enabled_plugins").write_text("[].\n")
        (self.dir / "env.conf").touch()

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@{HOST}:{self.port}//"

    def answers(self) -> bool:
        return amqp_auth(HOST, self.port) == "ok"

    def start(self) -> None:
        """Start the node (a second start is a no-op)."""
        if self.running:
            return
        env = self._env()
        if not self._processes:
            self._spawn([str(self._epmd_program), "-port", str(self.epmd_port), "-address", HOST], env)
            wait_until(lambda: accepts(self.epmd_port), START_SECONDS, "epmd listening")
        # Under systemd the start script replaces itself with the Erlang VM, so the child's pid is the broker's.
        self._spawn([str(self._bindir / "rabbitmq-server")], {**env, "RUNNING_UNDER_SYSTEMD": "true"})
        self._wait_for_start()

    def stop(self) -> None:
        """A clean shutdown; durable queues and persistent messages survive it."""
        super().stop()

    def wipe(self) -> None:
        """Stop the broker, lose everything it knew, and start it again."""
        self.stop()
        shutil.rmtree(self.dir / "mnesia")
        self.start()

    def ctl(self, *args: str) -> str:
        """Run ``rabbitmqctl`` against the node (an Erlang VM starts: a second or two) and return its output."""
        port = str(free_port())
        env = {**self._env(), "RABBITMQ_CTL_DIST_PORT_MIN": port, "RABBITMQ_CTL_DIST_PORT_MAX": port}
        return self._run([str(self._bindir / "rabbitmqctl"), *args], env)

    def set_memory_alarm(self, on: bool) -> None:
        """Raise or clear the memory alarm, which blocks every connection that publishes."""
        self.ctl("set_vm_memory_high_watermark", "0" if on else "0.4")

    def delete_queue(self, name: str) -> None:
        """Delete the queue with its messages; consumers are cancelled by the broker."""
        with self._channel() as channel:
            channel.queue_delete(name)

    def purge_queue(self, name: str) -> int:
        """Drop the messages that are ready (not those unacknowledged) and return how many."""
        with self._channel() as channel:
            return int(channel.queue_purge(name))

    def depth(self, name: str) -> int:
        """How many messages are ready in the queue."""
        with self._channel() as channel:
            return int(channel.queue_declare(name, passive=True).message_count)

    @contextlib.contextmanager
    def _channel(self) -> Iterator[Any]:
        import amqp  # only here: it comes with Celery, and tools/servers.py must do without

        with amqp.Connection(f"{HOST}:{self.port}", connect_timeout=5, read_timeout=10) as connection:
            yield connection.channel()

    def _env(self) -> dict[str, str]:
        return {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(self.dir),
            "LANG": "C.UTF-8",
            "ERL_EPMD_PORT": str(self.epmd_port),
            "ERL_EPMD_ADDRESS": HOST,
            # Two cores are shared with the tests: no busy waiting in the schedulers.
            "ERL_FLAGS": "-kernel inet_dist_use_interface {127,0,0,1} +sbwt none +sbwtdcpu none +sbwtdio none",
            "RABBITMQ_NODENAME": "private@localhost",
            "RABBITMQ_DIST_PORT": str(self.dist_port),
            "RABBITMQ_MNESIA_BASE": str(self.dir / "mnesia"),
            "RABBITMQ_LOG_BASE": str(self.dir / "logs"),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_CONFIG_FILE": str(self.dir / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(self.dir / "advanced.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.dir / "enabled_plugins"),
            "RABBITMQ_CONF_ENV_FILE": str(self.dir / "env.conf"),
        }

    @property
    def running(self) -> bool:
        # The first child is the port mapper, which outlives the broker's restarts.
        return len(self._processes) > 1 and self._processes[-1].poll() is None

    def kill9(self) -> None:
        """SIGKILL. A queue declared within the last moments may be forgotten with its messages: see `sync`."""
        if self.running:
            kill_family(self._processes[-1])
        del self._processes[1:]

    def sync(self) -> None:
        """Write what was declared to disk. (RabbitMQ 3.10 buffers it: 1 in 42 queues was gone after a SIGKILL.)"""
        self.ctl("eval", "mnesia:sync_log().")

    def _signal_and_wait(self, signum: int) -> None:
        epmd = self._processes[:1]
        super()._signal_and_wait(signum)
        self._processes[:] = epmd


def _rabbitmq_bindir() -> Path:
    # Debian's /usr/sbin/rabbitmq-server is a wrapper that changes user and directory; the scripts behind it do not.
    candidates = [Path("/usr/lib/rabbitmq/bin")]
    if program := shutil.which("rabbitmq-server"):
        candidates.append(Path(program).resolve().parent)
    for bindir in candidates:
        if (bindir / "rabbitmq-server").exists() and (bindir / "rabbitmqctl").exists():
            return bindir
    raise ServerMissing("rabbitmq-server and rabbitmqctl are not installed")
