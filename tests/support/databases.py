"""``DATABASES`` entries as ``startproject`` writes them: nothing is set but what the URL names."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

ENGINES = {"postgresql": "postgresql", "postgres": "postgresql", "mysql": "mysql", "sqlite": "sqlite3"}


def by_hand(url: str) -> dict[str, Any]:
    """Not by ``dj_database_url``: that sets keys which Django does not guarantee, and hid that we relied on one."""
    parts = urlsplit(url)
    entry: dict[str, Any] = {
        "ENGINE": f"django.db.backends.{ENGINES[parts.scheme]}",
        "NAME": unquote(parts.path[1:]),
    }
    if parts.scheme != "sqlite":
        entry.update(USER=unquote(parts.username or ""), HOST=parts.hostname or "", PORT=str(parts.port or ""))
        if parts.password:
            entry["PASSWORD"] = unquote(parts.password)
    if parts.query:
        entry["OPTIONS"] = dict(parse_qsl(parts.query))
    return entry
