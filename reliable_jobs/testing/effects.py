"""What a task left behind, in a form that can be compared."""

from __future__ import annotations

from typing import Any

from django.db.models import AutoField, DateField, QuerySet


def look(effects: Any) -> Any:
    """What a function returns; of models and querysets, the rows without automatic keys and ``auto_now`` times."""
    if callable(effects) and not isinstance(effects, type):
        found = effects()
        return list(found.all()) if isinstance(found, QuerySet) else found
    return [_rows(one) for one in ([effects] if isinstance(effects, (type, QuerySet)) else effects)]


def _rows(source: Any) -> list[dict[str, Any]]:
    rows = source.all() if isinstance(source, QuerySet) else source._default_manager.all()
    names = [field.attname for field in rows.model._meta.concrete_fields if not _is_automatic(field)]
    return sorted(rows.order_by().values(*names), key=repr)


def _is_automatic(field: Any) -> bool:
    is_clock = isinstance(field, DateField) and (field.auto_now or field.auto_now_add)
    return is_clock or isinstance(field, AutoField)


def difference(expected: Any, found: Any) -> str:
    return f"      expected: {expected!r}\n      found:    {found!r}"
