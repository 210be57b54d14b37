"""The arguments of a job in its answer, where the project asks for them (``result_extended``)."""

from __future__ import annotations

from typing import Any

from reliable_jobs.message import decode
from reliable_jobs.models import Job


def of_row(row: Job, app: Any) -> dict[str, Any]:
    """``args`` and ``kwargs`` as Celery's answer has them. None for what was not read, what this process does not
    decode, and what nobody may see; of sensitive arguments the texts that its message shows.
    """
    if row.payload is None:
        return {}
    try:
        envelope = decode.envelope_of(row)
        if envelope is None:
            return {"args": None, "kwargs": None}
        if envelope.get("sensitive"):
            headers = decode.headers_of(row)
            return {"args": headers.get("argsrepr"), "kwargs": headers.get("kwargsrepr")}
        if getattr(app.tasks.get(row.task), "sensitive", False):
            return {"args": None, "kwargs": None}  # a message from elsewhere, whose sender did not know
        args, kwargs = decode.arguments(row)
    except (ValueError, RecursionError):
        return {"args": None, "kwargs": None}
    return {"args": args, "kwargs": kwargs}
