"""Servers of a test's own, to be stopped, killed, wiped or cut off without hurting anyone else's.

    with PrivatePostgres() as postgres, PrivateRabbitMQ() as rabbitmq:
        with CuttableProxy(rabbitmq.port) as proxy:
            url = proxy.url(rabbitmq.url)

Everything lives in a temporary directory, listens on 127.0.0.1 only, is waited for by asking it (never by sleeping for
a guessed time), and is gone when the ``with`` block ends. Ports and contents survive a restart. Binaries that are not
installed raise `ServerMissing`. Only the standard library is used, so that `tools/servers.py` can borrow the classes.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import random
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, TypeVar
from urllib.parse import urlsplit, urlunsplit

HOST = "127.0.0.1"
START_SECONDS = 60.0
STOP_SECONDS = 30.0

Self = TypeVar("Self", bound="_Managed")


class ServerMissing(RuntimeError):
    """The server's programs are not installed on this machine."""


class ServerFailed(RuntimeError):
    """The server is installed, but did not do what it was told within its deadline."""


def wait_until(condition: Callable[[], object], seconds: float, what: str, every: float = 0.05) -> None:
    """Poll ``condition`` until it is true; raise `ServerFailed` naming ``what`` after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise ServerFailed(f"{what}: not within {seconds:g} s")
        time.sleep(every)


def free_port() -> int:
    """A free TCP port below the usual range of outgoing connections, so that it stays free over a restart."""
    for _ in range(200):
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return port
    raise ServerFailed("no free TCP port between 20000 and 32000")


def postgres_auth(host: str, port: int, user: str = "postgres", database: str = "postgres") -> str:
    """What a PostgreSQL server says to a start-up packet: ``ok``, ``password``, ``error: …`` or ``""`` (no answer)."""
    body = struct.pack("!I", 196608) + f"user\0{user}\0database\0{database}\0\0".encode()
    try:
        with socket.create_connection((host, port), timeout=3) as conn:
            conn.sendall(struct.pack("!I", len(body) + 4) + body)
            reply = conn.recv(4096)
    except OSError:
        return ""
    if reply[:1] == b"R" and len(reply) >= 9:
        return "ok" if reply[5:9] == b"\0\0\0\0" else "password"
    if reply[:1] == b"E":
        fields = {part[:1]: part[1:] for part in reply[5:].split(b"\0") if part}
        return "error: " + fields.get(b"M", b"?").decode(errors="replace")
    return ""


def amqp_auth(host: str, port: int, user: str = "guest", password: str = "guest") -> str:
    """What an AMQP 0-9-1 broker says to a login: ``ok``, ``refused`` or ``""`` (no answer)."""
    plain = f"\0{user}\0{password}".encode()
    # Connection.Start-Ok (class 10, method 11): no properties, mechanism, response, locale.
    said = ""
    method = struct.pack("!HHI", 10, 11, 0) + b"\x05PLAIN" + struct.pack("!I", len(plain)) + plain + b"\x05en_US"
    try:
        with socket.create_connection((host, port), timeout=5) as conn, conn.makefile("rb") as replies:
            conn.sendall(b"AMQP\x00\x00\x09\x01")
            if _amqp_method(replies) == (10, 10):
                said = "refused"  # until we hear better: a broker may just hang up on a wrong password
                conn.sendall(struct.pack("!BHI", 1, 0, len(method)) + method + b"\xce")
                if _amqp_method(replies) == (10, 30):
                    said = "ok"
    except OSError:
        pass
    return said


def _amqp_method(replies: BinaryIO) -> tuple[int, int]:
    """Class and method number of the next frame, (0, 0) if it is none."""
    header = replies.read(7)
    if len(header) < 7 or header[0] != 1:
        return 0, 0
    frame = replies.read(struct.unpack("!I", header[3:])[0] + 1)
    return struct.unpack("!HH", frame[:4]) if len(frame) > 4 else (0, 0)


def mysql_greets(host: str, port: int) -> bool:
    """Whether a MySQL or MariaDB server greets who comes in, instead of refusing or saying nothing."""
    try:
        with socket.create_connection((host, port), timeout=3) as conn, conn.makefile("rb") as replies:
            header = replies.read(4)
            return len(header) == 4 and replies.read(1) == b"\x0a"  # protocol version 10; an error begins with 0xff
    except OSError:
        return False


def redis_pong(host: str, port: int) -> bool:
    """Whether a Redis server answers, and is not loading its data any more."""
    try:
        with socket.create_connection((host, port), timeout=3) as conn:
            conn.sendall(b"PING\r\n")
            return conn.recv(64) == b"+PONG\r\n"
    except OSError:
        return False


class _Managed:
    """What the classes here share: ``with``, and cleaning up at interpreter exit if a test forgets."""

    def start(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError

    def __enter__(self: Self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


class _Server(_Managed):
    """A child process with a temporary directory and a log."""

    name: str
    user: str | None = None
    """The system user to run as when the tests run as root (``None``: as ourselves)."""

    def __init__(self, parent: Path | None = None) -> None:
        self.port = free_port()
        self.dir = Path(tempfile.mkdtemp(prefix=f"rj-{self.name}-", dir=parent))
        self._processes: list[subprocess.Popen[bytes]] = []
        self._cleanup = weakref.finalize(self, _clean_up, self._processes, self.dir)
        self._account: dict[str, Any] = {}
        if self.user and os.geteuid() == 0:
            try:
                account = pwd.getpwnam(self.user)
            except KeyError:
                self.close()
                raise ServerMissing(f"{self.name} refuses to run as root, and there is no user {self.user!r}") from None
            os.chown(self.dir, account.pw_uid, account.pw_gid)
            self._account = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}

    @property
    def log(self) -> str:
        """The end of what the server wrote to its standard output and error."""
        path = self.dir / "log"
        return path.read_text(errors="replace")[-4000:] if path.exists() else ""

    @property
    def pid(self) -> int:
        """The server's main process."""
        if not self.running:
            raise ServerFailed(f"{self.name} is not running\n{self.log}")
        return self._processes[-1].pid

    @property
    def running(self) -> bool:
        return bool(self._processes) and self._processes[-1].poll() is None

    def answers(self) -> bool:
        raise NotImplementedError

    def kill9(self) -> None:
        """End the server and all its children with SIGKILL, at once, as a power cut or the OOM killer would."""
        if self.running:
            _kill_family(self._processes[-1])
        self._processes.clear()

    def close(self) -> None:
        """Kill what is left and remove the directory. Safe to call twice."""
        self._cleanup()

    def _spawn(self, argv: list[str], env: dict[str, str]) -> subprocess.Popen[bytes]:
        with (self.dir / "log").open("ab") as log:
            process = subprocess.Popen(
                argv,
                env=env,
                cwd=self.dir,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                **self._account,
            )
        self._processes.append(process)
        return process

    def _wait_for_start(self) -> None:
        def ready() -> bool:
            if not self.running:
                raise ServerFailed(f"{self.name} ended while starting\n{self.log}")
            return self.answers()

        try:
            wait_until(ready, START_SECONDS, f"{self.name} answering on port {self.port}")
        except ServerFailed as error:
            self.kill9()
            raise ServerFailed(f"{error}\n{self.log}") from None

    def _signal_and_wait(self, signum: int) -> None:
        if self.running:
            process = self._processes[-1]
            process.send_signal(signum)
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.kill9()
                raise ServerFailed(f"{self.name} did not stop within {STOP_SECONDS:g} s\n{self.log}") from None
        self._processes.clear()


class PrivatePostgres(_Server):
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
            made = subprocess.run(
                [str(self._bindir / "initdb"), "-D", str(data), *options],
                env=env,
                cwd=self.dir,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=START_SECONDS,
                **self._account,
            )
            if made.returncode:
                raise ServerFailed(f"initdb failed\n{made.stdout}{made.stderr}")
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


class PrivateRabbitMQ(_Server):
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
            wait_until(lambda: _accepts(self.epmd_port), START_SECONDS, "epmd listening")
        # Under systemd the start script replaces itself with the Erlang VM, so the child's pid is the broker's.
        self._spawn([str(self._bindir / "rabbitmq-server")], {**env, "RUNNING_UNDER_SYSTEMD": "true"})
        self._wait_for_start()

    def stop(self) -> None:
        """A clean shutdown; durable queues and persistent messages survive it."""
        self._signal_and_wait(signal.SIGTERM)

    def restart(self) -> None:
        self.stop()
        self.start()

    def wipe(self) -> None:
        """Stop the broker, lose everything it knew, and start it again."""
        self.stop()
        shutil.rmtree(self.dir / "mnesia")
        self.start()

    def ctl(self, *args: str) -> str:
        """Run ``rabbitmqctl`` against the node (an Erlang VM starts: a second or two) and return its output."""
        port = str(free_port())
        done = subprocess.run(
            [str(self._bindir / "rabbitmqctl"), *args],
            env={**self._env(), "RABBITMQ_CTL_DIST_PORT_MIN": port, "RABBITMQ_CTL_DIST_PORT_MAX": port},
            cwd=self.dir,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=START_SECONDS,
        )
        if done.returncode:
            raise ServerFailed(f"rabbitmqctl {' '.join(args)} failed\n{done.stdout}{done.stderr}")
        return done.stdout

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
            _kill_family(self._processes[-1])
        del self._processes[1:]

    def sync(self) -> None:
        """Write what was declared to disk. (RabbitMQ 3.10 buffers it: 1 in 42 queues was gone after a SIGKILL.)"""
        self.ctl("eval", "mnesia:sync_log().")

    def _signal_and_wait(self, signum: int) -> None:
        epmd = self._processes[:1]
        super()._signal_and_wait(signum)
        self._processes[:] = epmd


class PrivateMariaDB(_Server):
    """A MariaDB server whose ``root`` may come in over TCP without a password."""

    name = "mariadb"
    user = "mysql"

    def __init__(self, *, settings: dict[str, str] | None = None) -> None:
        """``settings``: options of the server, as ``{"max-connections": "50"}``."""
        self._server_program = _program("mariadbd", "mysqld")
        self._install_program = _program("mariadb-install-db", "mysql_install_db")
        self._client_program = _program("mariadb", "mysql")
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
            made = subprocess.run(
                [self._install_program, "--no-defaults", f"--datadir={data}", *options],
                env=env,
                cwd=self.dir,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=START_SECONDS,
                **self._account,
            )
            if made.returncode:
                raise ServerFailed(f"mariadb-install-db failed\n{made.stdout}{made.stderr}")
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

    def stop(self) -> None:
        """A clean shutdown."""
        self._signal_and_wait(signal.SIGTERM)

    def restart(self) -> None:
        self.stop()
        self.start()

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


class PrivateRedis(_Server):
    """A Redis server in which nothing but memory holds what it knows, unless ``durable``."""

    name = "redis"

    def __init__(self, *, durable: bool = False, settings: dict[str, str] | None = None) -> None:
        """
        Args:
            durable: write each command to disk before it is answered, so that a restart forgets nothing.
            settings: further lines of its configuration.
        """
        self._program = _program("redis-server")
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
        self._signal_and_wait(signal.SIGTERM)

    def restart(self) -> None:
        self.stop()
        self.start()

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


class PgBouncer(_Server):
    """PgBouncer before one PostgreSQL server, for all its databases, without passwords."""

    name = "pgbouncer"
    user = "postgres"

    def __init__(
        self, postgres_port: int, *, pool_mode: str = "transaction", settings: dict[str, str] | None = None
    ) -> None:
        """``settings``: further lines of its configuration."""
        self._program = _program("pgbouncer")
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
        self._signal_and_wait(signal.SIGTERM)

    def restart(self) -> None:
        self.stop()
        self.start()


class CuttableProxy(_Managed):
    """A TCP proxy in front of one server, to break the network between it and some of its clients."""

    def __init__(self, target_port: int, *, target_host: str = HOST) -> None:
        self.target = (target_host, target_port)
        self.port = free_port()
        self.latency = 0.0
        """Seconds by which each chunk is delayed, in either direction."""
        self.accepted = 0
        """Connections accepted so far."""
        self._links: set[_Link] = set()
        self._blackhole = False
        self._listener: socket.socket | None = None
        self._acceptor: threading.Thread | None = None

    def url(self, server_url: str) -> str:
        """``server_url`` with host and port replaced by the proxy's."""
        parts = urlsplit(server_url)
        userinfo, at, _ = parts.netloc.rpartition("@")
        return urlunsplit(parts._replace(netloc=f"{userinfo}{at}{HOST}:{self.port}"))

    @property
    def links(self) -> int:
        """Connections open at the moment."""
        return len(self._links)

    def start(self) -> None:
        self.refuse(False)

    def close(self) -> None:
        self.refuse(True)
        self.cut()

    def cut(self) -> None:
        """Close every open connection in both directions; new ones are accepted as before."""
        for link in list(self._links):
            link.close()

    def reset(self) -> None:
        """End every open connection with RST in both directions, as a router that has forgotten them does."""
        for link in list(self._links):
            link.reset()

    def cut_swallowed(self) -> None:
        """Close what a blackhole has swallowed bytes of, as a kernel that gives up on it would."""
        for link in list(self._links):
            if link.swallowed:
                link.close()

    def refuse(self, on: bool) -> None:
        """Refuse new connections (``ECONNREFUSED``), or accept them again. Open ones go on."""
        if on and self._listener is not None:
            listener, self._listener = self._listener, None
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            assert self._acceptor is not None
            self._acceptor.join()
            listener.close()
        elif not on and self._listener is None:
            listener = socket.socket()
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.settimeout(0.2)
            listener.bind((HOST, self.port))
            listener.listen(128)
            self._listener = listener
            self._acceptor = threading.Thread(target=self._accept, args=(listener,), daemon=True)
            self._acceptor.start()

    def blackhole(self, on: bool) -> None:
        """Swallow everything in both directions and pass on no closing either: a half-open network.

        New connections are accepted, and never answered. A connection that was open or came during a blackhole stays
        swallowed when it ends, since bytes of it are missing; only new connections work again.
        """
        self._blackhole = on
        if on:
            for link in list(self._links):
                link.swallowed = True

    def _accept(self, listener: socket.socket) -> None:
        while self._listener is listener:
            try:
                client, _ = listener.accept()
            except TimeoutError:
                continue
            except OSError:
                return
            self.accepted += 1
            client.settimeout(None)
            server: socket.socket | None = None
            if not self._blackhole:
                try:
                    server = socket.create_connection(self.target, timeout=5)
                    server.settimeout(None)
                except OSError:
                    client.close()
                    continue
            link = _Link(self, client, server)
            self._links.add(link)
            if self._blackhole:
                link.swallowed = True
            link.start()


class _Link:
    """One proxied connection, with a thread for each direction."""

    def __init__(self, proxy: CuttableProxy, client: socket.socket, server: socket.socket | None) -> None:
        self.proxy = proxy
        self.swallowed = False
        self._resetting = False
        self._sockets = [client] if server is None else [client, server]
        for sock in self._sockets:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        ways = [(client, server)] if server is None else [(client, server), (server, client)]
        self._threads = [threading.Thread(target=self._pump, args=way, daemon=True) for way in ways]
        self._lock = threading.Lock()
        self._running = len(ways)

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        for sock in self._sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5)

    def reset(self) -> None:
        self._resetting = True
        for sock in self._sockets:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close() sends RST
                sock.shutdown(socket.SHUT_RD)  # sends nothing, and wakes the thread that reads
        for thread in self._threads:
            thread.join(5)

    def _pump(self, source: socket.socket, sink: socket.socket | None) -> None:
        try:
            while data := source.recv(65536):
                if self.proxy.latency:
                    time.sleep(self.proxy.latency)
                if not self.swallowed and sink is not None:
                    sink.sendall(data)
            if not self.swallowed and not self._resetting and sink is not None:
                sink.shutdown(socket.SHUT_WR)
        except OSError:
            if not self.swallowed and not self._resetting:
                for sock in self._sockets:
                    with contextlib.suppress(OSError):
                        sock.shutdown(socket.SHUT_RDWR)
        finally:
            self._finished()

    def _finished(self) -> None:
        with self._lock:
            self._running -= 1
            last = self._running == 0
        if last:
            self.proxy._links.discard(self)
            for sock in self._sockets:
                sock.close()


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


def _rabbitmq_bindir() -> Path:
    # Debian's /usr/sbin/rabbitmq-server is a wrapper that changes user and directory; the scripts behind it do not.
    candidates = [Path("/usr/lib/rabbitmq/bin")]
    if program := shutil.which("rabbitmq-server"):
        candidates.append(Path(program).resolve().parent)
    for bindir in candidates:
        if (bindir / "rabbitmq-server").exists() and (bindir / "rabbitmqctl").exists():
            return bindir
    raise ServerMissing("rabbitmq-server and rabbitmqctl are not installed")


def _program(*names: str) -> str:
    """The first of these programs that is installed."""
    for name in names:
        for found in (shutil.which(name), f"/usr/sbin/{name}", f"/usr/local/sbin/{name}"):
            if found and os.access(found, os.X_OK):
                return found
    raise ServerMissing(f"{names[0]} is not installed")


def _accepts(port: int, host: str = HOST) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((host, port)) == 0


def _clean_up(processes: list[subprocess.Popen[bytes]], directory: Path) -> None:
    for process in reversed(processes):
        if process.poll() is None:
            _kill_family(process)
    shutil.rmtree(directory, ignore_errors=True)


def _kill_family(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL a process of ours and its descendants, some of which may have sessions of their own."""
    process.send_signal(signal.SIGSTOP)  # so that it starts no further child meanwhile
    family = [process.pid]
    for pid in family:
        family += [child for child, parent in parents().items() if parent == pid and child not in family]
    for pid in family:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait(STOP_SECONDS)
    wait_until(lambda: not set(family) & set(parents()), STOP_SECONDS, "killed processes gone")


def parents() -> dict[int, int]:
    """Parent by process id, of every process that is not a zombie."""
    said = ""
    if Path("/proc/self/stat").exists():
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    state, parent = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()[:2]
                    said += f"{entry.name} {parent} {state}\n"
    else:
        said = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,state="], capture_output=True, text=True).stdout
    rows = (line.split() for line in said.splitlines())
    return {int(pid): int(parent) for pid, parent, state in rows if not state.startswith("Z")}
