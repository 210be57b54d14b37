"""An exception as text for its job's row, and back: Celery's three parts of it, as JSON.

What is built from the text is an exception and nothing else, of a class whose module this process has loaded. Where the
class does not take the arguments that its instance had (an ``__init__`` of its own), the instance is made without a
call, so that ``except MyError`` catches it all the same.
"""

from __future__ import annotations

import sys
from typing import Any

from celery.exceptions import SoftTimeLimitExceeded
from kombu.utils import json as kombu_json

#: Characters of an argument, and of all three parts together. What is longer is cut: it is there to be read.
LONGEST_ARGUMENT = 10_000
LONGEST = 40_000


def encode(error: BaseException) -> str:
    """Class, module and arguments of an exception, as text for its row. Never raises for what the arguments are.

    Raises:
        celery.exceptions.SoftTimeLimitExceeded: it came meanwhile.
    """
    found = parts(error)
    text: str = kombu_json.dumps(found)
    if len(text) > LONGEST:
        text = kombu_json.dumps({**found, "exc_message": [_cut(str(error))]})
    return text


def parts(error: BaseException) -> dict[str, Any]:
    """The same as values that JSON takes, as Celery's result backends have them."""
    kind = type(error)
    arguments = [_storable(value) for value in getattr(error, "args", ())]
    return {"exc_type": kind.__qualname__, "exc_module": kind.__module__, "exc_message": arguments}


def _storable(value: Any) -> Any:
    """The value, or how it is printed where JSON does not take it."""
    try:
        text = kombu_json.dumps(value)
        kombu_json.loads(text)  # a dict that looks like a type of kombu's own would not be read again
    except SoftTimeLimitExceeded:
        raise
    except Exception:  # each type is written by code of its own
        text = ""
    if text and len(text) <= LONGEST_ARGUMENT:
        return value
    try:
        return _cut(value if isinstance(value, str) else repr(value))
    except SoftTimeLimitExceeded:
        raise
    except Exception as trouble:
        return f"(a {type(value).__name__} that can't be printed: {type(trouble).__name__})"


def _cut(text: str) -> str:
    # NUL and half characters are escaped in JSON.
    return text if len(text) <= LONGEST_ARGUMENT else f"{text[:LONGEST_ARGUMENT]} …"


def decode(text: str) -> Exception:
    """The exception of a row; one of the same name and text where its class is not loaded here."""
    try:
        return of_parts(kombu_json.loads(text))
    except (ValueError, TypeError, KeyError):
        return RuntimeError(text)


def of_parts(said: dict[str, Any]) -> Exception:
    """
    Raises:
        KeyError, TypeError: it is not what :func:`parts` made.
    """
    return _rebuilt(str(said["exc_type"]), str(said["exc_module"]), tuple(said["exc_message"]))


def _rebuilt(name: str, module: str, arguments: tuple[Any, ...]) -> Exception:
    """
    Args:
        name: qualified, of the class.
    """
    kind = _loaded(name, module)
    if kind is None:
        kind = type(name.rpartition(".")[2] or "Exception", (Exception,), {"__module__": module})
    try:
        error = kind(*arguments)
    except SoftTimeLimitExceeded:
        raise
    except Exception:
        try:
            error = kind.__new__(kind)
        except SoftTimeLimitExceeded:
            raise
        except Exception:
            return Exception(f"{name}{arguments!r}")
    error.args = arguments  # an __init__ that makes a text of them would make one of that text
    return error


def _loaded(name: str, module: str) -> type[Exception] | None:
    """The class, if its module is loaded and it is one of exceptions. Nothing is imported for a row's sake."""
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found if isinstance(found, type) and issubclass(found, Exception) else None
