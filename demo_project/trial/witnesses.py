"""The logs outside the database, read as evidence: who was inside a body, what was charged, what was mailed.

``provider.log``: ``PID asked|refused|charged ORDER KEY AMOUNT``, written by the payment provider.
``shop.log``: ``PID upload N: line I of N`` and ``PID order ID: …``, the shop's own log file.
``orders.log``: ``committed|rolled-back ORDER``, written by whoever placed the orders.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator

from django.conf import settings

from demo_project.trial.brokers import Victim

_LINE = re.compile(r"(\d+) upload (\d+): line (\d+) of (\d+)")
_ORDER = re.compile(r"^\d+ order (\S+):")
_MAIL_ID = re.compile(r"^Message-ID: <(\S+)@", re.MULTILINE)
_MAIL_ORDER = re.compile(r"^X-Order: (\S+)", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Request:
    """One line of the provider's log."""

    pid: int
    what: str
    order: str
    key: str


def lines(name: str) -> list[str]:
    """The complete lines of a log; [] while it does not exist."""
    try:
        text = (settings.OUTSIDE_DIR / name).read_text()
    except FileNotFoundError:
        return []
    return text[: text.rfind("\n") + 1].splitlines()


def note(name: str, line: str) -> None:
    """Append a line of our own."""
    descriptor = os.open(settings.OUTSIDE_DIR / name, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(descriptor, f"{line}\n".encode())
    finally:
        os.close(descriptor)


def provider() -> list[Request]:
    found = []
    for line in lines("provider.log"):
        pid, what, order, key, _ = line.split()
        found.append(Request(int(pid), what, order, key))
    return found


@dataclasses.dataclass(frozen=True)
class Inside:
    """A process's last word: it is in the middle of this body, at this line of an upload."""

    victim: Victim
    line: int = 0


def inside_bodies() -> dict[int, Inside]:
    """By process id, who was in the middle of a body when it last wrote. Whether it still lives is not said."""
    inside: dict[int, Inside] = {}
    for line in lines("shop.log"):
        match = _LINE.match(line)
        if match is None:
            continue
        pid, upload, number, total = map(int, match.groups())
        inside[pid] = Inside(Victim("process_upload", str(upload)), number)
        if number == total:
            del inside[pid]
    for pid, request in {request.pid: request for request in provider()}.items():
        if request.what == "asked":
            inside[pid] = Inside(Victim("take_payment", request.order))
    return inside


def mails() -> Iterator[tuple[str, str]]:
    """(message id, order) of every e-mail that went out."""
    for file in sorted(settings.EMAIL_FILE_PATH.iterdir()):
        text = file.read_text()
        yield from zip(_MAIL_ID.findall(text), _MAIL_ORDER.findall(text), strict=True)


def orders_seen_in_shop_log() -> list[str]:
    return [match.group(1) for line in lines("shop.log") if (match := _ORDER.match(line))]
