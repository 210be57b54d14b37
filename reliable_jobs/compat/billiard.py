"""billiard: what its pool tells of a child process, and the form in which a child tells of an error."""

from __future__ import annotations

from typing import Any

from reliable_jobs.compat.register import Library

BILLIARD = Library("billiard", "billiard", tried="4.2.1 to 4.3")

with BILLIARD.importing():
    from billiard.einfo import ExceptionInfo

__all__ = ["ExceptionInfo", "described", "exit_status"]

#: The exit codes of a child that its own handler of a signal has ended: -(256 - the signal's number).
_SIGNAL_EXITS = range(-256, -190)


@BILLIARD.undocumented(
    "ExceptionInfo",
    at="billiard.einfo:ExceptionInfo.__init__",
    takes=("exc_info", "internal"),
    tests=["test_unreported", "test_adversary"],
)
def described(*, internal: bool = False) -> Any:
    """The exception that is being handled, in the form that Celery's tracer returns it and the parent process reads it.
    Celery's guide names the class as the type of ``einfo``, and not how one is made.

    Args:
        internal: it comes from Celery and not from the task function.
    """
    return ExceptionInfo(internal=internal)


@BILLIARD.undocumented(
    "common._shutdown_cleanup",
    at="billiard.common:_shutdown_cleanup",
    takes=("signum",),
    tests=["test_parent_endings"],
)
def exit_status(code: int) -> int:
    """The exit status of a child of the pool, from the code that its SystemExit carries: a child that handles a signal
    ends with -(256 - the signal's number), which here becomes the usual negative number of the signal."""
    return -(256 + code) if code in _SIGNAL_EXITS else code
