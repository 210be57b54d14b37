"""What is heard of tasks, one line each in a file: workers have several processes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def note(task_id: Any, text: str) -> None:
    """Take note of something that concerns a task. Nothing where no file is named."""
    path = os.environ.get("TEST_NOTES")
    if not path:
        return
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, (json.dumps([str(task_id), text]) + "\n").encode())
    os.close(descriptor)


def read(path: Path) -> dict[str, list[str]]:
    """All notes by task, in the order in which they were taken."""
    found: dict[str, list[str]] = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        task_id, text = json.loads(line)
        found.setdefault(task_id, []).append(text)
    return found
