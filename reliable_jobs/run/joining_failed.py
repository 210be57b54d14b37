"""What becomes of statements that a server, a proxy or a patched cursor refuses to take together."""

from __future__ import annotations

import logging

from django.db import DatabaseError, OperationalError

from reliable_jobs.lifecycle.db_errors import sqlstate

logger = logging.getLogger(__name__)

#: What servers and proxies answer if they refuse the text, and not what is in it: syntax error, feature not supported,
#: no such prepared statement.
_REFUSALS = ("42601", "0A000", "26000")
#: Aliases on which joining has failed in this process.
switched_off: set[str] = set()


class JoiningFailed(OperationalError):
    """The statements could not be sent together. From now on they are sent one by one.

    It has no SQLSTATE, like a lost connection, and is handled like one: a claim is tried again at once, a run whose
    settlement failed is interrupted and runs again. No job fails.
    """


def switch_off(alias: str, error: Exception) -> JoiningFailed | None:
    """Send statements one by one from now on, if an error comes from joining them, and not from one of them."""
    if not _is_refusal(error):
        return None
    switched_off.add(alias)
    logger.warning(
        "Statements can't be sent together on database %r (%s: %s). From now on they are sent one by one.",
        alias,
        type(error).__name__,
        error,
    )
    return JoiningFailed(f"statements can't be sent together: {type(error).__name__}: {error}")


def _is_refusal(error: Exception) -> bool:
    if not isinstance(error, DatabaseError):
        return True  # of the cursor, or of a library that patches it
    state = sqlstate(error)
    if state is None:
        return not isinstance(error, OperationalError)  # the driver's own; an operational one is a lost connection
    return state in _REFUSALS
