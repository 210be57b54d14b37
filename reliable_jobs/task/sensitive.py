"""Arguments that nobody may see: ``sensitive`` of a task."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

HIDDEN = "[hidden]"
_LONGEST = 1024


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


class Sensitive:
    """The half of a task that knows which of its arguments are hidden."""

    sensitive: bool | Iterable[str] = ()

    def _is_sensitive(self, name: str) -> bool:
        return self.sensitive is True or (self.sensitive is not False and name in self.sensitive)

    def _shown(self, args: Any, kwargs: Any) -> tuple[str, str]:
        names = self._positional_names()
        shown_args = [
            HIDDEN if self._is_sensitive(names[i] if i < len(names) else "*") else repr(value)
            for i, value in enumerate(args)
        ]
        shown_kwargs = {name: HIDDEN if self._is_sensitive(name) else repr(value) for name, value in kwargs.items()}
        shown = f"({', '.join(shown_args)})", "{" + ", ".join(f"{n!r}: {v}" for n, v in shown_kwargs.items()) + "}"
        # As long as Celery makes them: they are headers, which have to fit into one frame.
        return _shortened(shown[0]), _shortened(shown[1])

    def secrets(self, args: Any, kwargs: Any) -> list[Any]:
        """The values of the sensitive arguments, to be taken out of errors."""
        if not self.sensitive:
            return []
        names = self._positional_names()
        found = [value for i, value in enumerate(args or ()) if self._is_sensitive(names[i] if i < len(names) else "*")]
        return found + [value for name, value in (kwargs or {}).items() if self._is_sensitive(name)]

    def _positional_names(self) -> list[str]:
        kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        task: Any = self
        return [p.name for p in inspect.signature(task.run).parameters.values() if p.kind in kinds]
