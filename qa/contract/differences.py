"""What differs on purpose from plain Celery, each with its reason. At most ten, none of them a lost step."""

from __future__ import annotations

#: By test, as ``python -m qa.contract`` names it.
DIFFERENCES: dict[str, str] = {}
