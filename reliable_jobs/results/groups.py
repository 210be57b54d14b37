"""``GroupResult.save()``, where no other result backend keeps groups: which jobs belong to a group."""

from __future__ import annotations

from typing import Any

from reliable_jobs import databases
from reliable_jobs.message import result_text
from reliable_jobs.models import SavedGroup


def keep(group_id: str, results: Any) -> None:
    """Keep a group's results in the caller's transaction; kept before, they are replaced."""
    rows = SavedGroup.objects.using(databases.write_alias())
    rows.update_or_create(group_id=group_id, defaults={"results": result_text.encode(results, "json")})


def find(group_id: str) -> Any:
    """What was kept of a group, None for nothing."""
    for alias in databases.in_order():
        saved = SavedGroup.objects.using(alias).filter(group_id=group_id).first()
        if saved is not None:
            return result_text.decode(saved.results)
    return None


def drop(group_id: str) -> None:
    for alias in databases.in_order():
        SavedGroup.objects.using(alias).filter(group_id=group_id).delete()
