"""The broker that needs no server: kombu's filesystem transport, with one fault of it fixed.

It loses messages by itself, which suits the demo: what a worker has fetched but not run dies with the worker, because
fetching removes the file. Kombu's own version has one fault that would also end the consumer: a message file is visible
while it is still empty, and a consumer that reads it then stops with a JSON error. Here the file gets its name when it
is complete.
"""

from __future__ import annotations

import os
import time
import uuid
from typing import Any

from kombu.transport import filesystem
from kombu.utils.json import dumps

SUFFIX = ".msg"


def write_message(folder: str, queue: str, text: str, written_at: int | None = None) -> None:
    """Add a message file to a queue, whose files are fetched in the order of their names.

    Args:
        written_at: milliseconds of the monotonic clock; now when omitted.

    Raises:
        OSError: the file can't be written.
    """
    order = round(time.monotonic() * 1000) if written_at is None else written_at
    unique = uuid.uuid4()
    name = f"{order}_{unique}.{queue}{SUFFIX}"
    # No part of the queue's name in it: before 5.6, kombu fetches every file whose name contains that.
    unfinished = os.path.join(folder, f"unfinished-{unique}")
    with open(unfinished, "w") as file:
        file.write(text)
    os.rename(unfinished, os.path.join(folder, name))


class Channel(filesystem.Channel):
    def _put(self, queue: str, payload: Any, **kwargs: Any) -> None:
        write_message(self.data_folder_out, queue, dumps(payload))


class Transport(filesystem.Transport):
    Channel = Channel
