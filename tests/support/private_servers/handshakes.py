"""Whether something that answers as the server does listens on a port. None of them needs a client library."""

from __future__ import annotations

import socket
import struct
from typing import BinaryIO


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
