"""What in a message would fail only after a worker has taken it, where nobody could park it any more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from reliable_jobs.message.row_to_message import HEADER


def misshapen(headers: Mapping[str, Any], args: Any, kwargs: Any, embed: Any) -> str | None:
    """Why a message can't be run, whatever its task is. None when it will do.

    Args:
        headers: Celery's.
        args, kwargs, embed: the three parts of the body, decoded.
    """
    if not isinstance(args, (list, tuple)):
        return f"the positional arguments are a {type(args).__name__}"
    if not isinstance(kwargs, dict) or not all(isinstance(name, str) for name in kwargs):
        return "the keyword arguments are no object with texts as names"
    if embed is not None and not isinstance(embed, dict):
        return f"what is to follow is a {type(embed).__name__}"
    follow = embed or {}
    for name in ("callbacks", "errbacks", "chain"):
        steps = follow.get(name)
        if steps and not (isinstance(steps, (list, tuple)) and all(isinstance(step, dict) for step in steps)):
            return f"{name} is no list of signatures"
    if follow.get("chord") and not isinstance(follow["chord"], dict):
        return "chord is no signature"
    forged = {name for name in (*headers, *follow) if name != HEADER and str(name).startswith("reliable_")}
    forged |= (set(follow) & set(headers)) - {"callbacks", "errbacks", "chain", "chord"}
    if forged:
        return f"{sorted(forged)} would replace what the worker itself says of the message"
    limits = headers.get("timelimit")
    if limits and not (isinstance(limits, (list, tuple)) and len(limits) == 2 and all(map(_is_limit, limits))):
        return f"timelimit={limits!r} is no pair of seconds"
    retries = headers.get("retries")
    if retries is not None and not isinstance(retries, int):
        return f"retries={retries!r} is no number"
    return None


def _is_limit(value: Any) -> bool:
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 10**9)
