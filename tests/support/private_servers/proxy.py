"""A network that can be cut."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from urllib.parse import urlsplit, urlunsplit

from tests.support.private_servers.server import (
    HOST,
    Managed,
    free_port,
)


class CuttableProxy(Managed):
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
