"""How many parts of a group are unfinished, and when that is worth another look.

A look costs a tenth of what a small part does altogether, because PostgreSQL plans it anew each time; and while many
parts are left, it finds that many are left. So a look counts, up to a bound, and this process does not look again
before that many can have ended. No end is missed: should the parts end faster, the sweep decides the group.
"""

from __future__ import annotations

import time
import uuid

from django.db import connections

from reliable_jobs.lifecycle import groups, sql

#: Parts of one group that a fleet of workers hardly ends in a second: each is a commit in one database.
MOST_PER_SECOND = 5_000
#: With fewer left each part looks.
FEW = 50

#: When this process looks at a group again (monotonic); groups with many parts left only.
_next: dict[uuid.UUID, float] = {}
_MOST_KEPT = 1000


def is_due(group_id: uuid.UUID) -> bool:
    """Whether the group may have ended since this process last looked."""
    return time.monotonic() >= _next.get(group_id, 0.0)


def behind_commit(group_id: uuid.UUID, using: str) -> str:
    """The look, as a statement that may travel behind a part's COMMIT: its one row is what :func:`note` takes."""
    return sql.in_words(connections[using], groups.OWED).replace("%s", f"'{group_id}'")


def look(group_id: uuid.UUID, using: str) -> int:
    """How many parts are unfinished, up to ``groups.COUNTED``.

    Raises:
        django.db.Error: as any query.
    """
    return note(group_id, int(sql.rows(using, groups.OWED, group_id)[0][0]))


def note(group_id: uuid.UUID, left: int) -> int:
    """What a look has found."""
    if left < FEW:
        _next.pop(group_id, None)
    else:
        if len(_next) >= _MOST_KEPT:
            _next.clear()
        _next[group_id] = time.monotonic() + left / MOST_PER_SECOND
    return left
