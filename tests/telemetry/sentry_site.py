"""What a project has that reports to Sentry: a worker imports this. What would be sent goes to a file, a line each."""

from __future__ import annotations

import json
import os
from typing import Any

import sentry_sdk
from sentry_sdk.transport import Transport


class Recorder(Transport):
    def capture_envelope(self, envelope: Any) -> None:
        event = envelope.get_event()
        if event is not None:
            # In one piece: a worker's processes write here, too.
            with open(os.environ["TEST_SENTRY_FILE"], "ab", buffering=0) as file:
                file.write(f"{json.dumps(event, default=repr)}\n".encode())


def start() -> None:
    """With all of Sentry's integrations, as ``sentry_sdk.init(dsn=…)`` has them."""
    sentry_sdk.init(dsn="http://public@127.0.0.1:9/1", transport=Recorder)


if "TEST_SENTRY_FILE" in os.environ:
    start()
