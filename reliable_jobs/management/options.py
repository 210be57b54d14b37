"""Types of the commands' options."""

from __future__ import annotations

import argparse
import datetime

from reliable_jobs.models.moments import read_age, read_moment


def seconds(text: str) -> float:
    """The type of an option that is a length of time."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError("must be a number of seconds above 0")
    return value


def age(text: str) -> float:
    """The type of an option that is an age: ``90``, ``90s``, ``15m``, ``2h`` or ``7d``."""
    try:
        return read_age(text)
    except ValueError:
        raise argparse.ArgumentTypeError("must be a time such as 90s, 15m, 2h or 7d") from None


def moment(text: str) -> datetime.datetime:
    """The type of an option that is a time, see :func:`read_moment`."""
    try:
        return read_moment(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def above_zero(text: str) -> int:
    """The type of an option that is a number of jobs."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return value
