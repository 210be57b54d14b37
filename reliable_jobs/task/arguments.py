"""Whether a call's arguments fit the task function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from reliable_jobs.errors import InvalidOption


class Arguments:
    """The half of a task that checks arguments."""

    name: Any
    typing: Any
    #: Whether the task function has a ``yield``: calling one runs nothing of it.
    is_generator = False
    #: Raises TypeError where arguments don't fit the task function. Set with each class: see task/function.py.
    argument_check: Callable[..., Any] | None = None

    def _refuse_generator(self) -> NoReturn:
        raise InvalidOption(
            f"{self.name} is a generator function (it has a yield), so a worker's call would run nothing of it. "
            "Use a loop in the function, or return a list."
        )

    def _check_arguments(self, args: Any, kwargs: Any) -> None:
        """As Celery does at the call, unless the task has ``typing = False``. Raises TypeError."""
        if self.argument_check is not None and self.typing:
            self.argument_check(*args, **kwargs)

    def misfit(self, args: Any, kwargs: Any) -> str | None:
        """Why these arguments don't fit the code at hand; None when they do, or the task has ``typing = False``."""
        try:
            self._check_arguments(args, kwargs)
        except TypeError as error:
            return str(error)
        return None
