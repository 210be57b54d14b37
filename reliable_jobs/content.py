"""What a row's message holds: its headers and arguments, decoded."""

from __future__ import annotations

import json
from collections.abc import Container, Mapping
from typing import Any

from celery.exceptions import SoftTimeLimitExceeded
from kombu.compression import decompress
from kombu.serialization import loads

from reliable_jobs.conf import settings
from reliable_jobs.message import PICKLE, Rendered
from reliable_jobs.models import Job

#: Content types whose decoding builds plain data and runs no code that the payload names. Any other codec that a
#: project registers with kombu may be pickle in disguise.
PLAIN_DATA = ("application/json", "application/x-yaml", "application/x-msgpack")


def headers_of(job: Job) -> dict[str, Any]:
    """The Celery headers of a row; {} when they can't be read."""
    try:
        headers = json.loads(job.envelope)["headers"]
    except (ValueError, KeyError, TypeError):
        return {}
    return headers if isinstance(headers, dict) else {}


class NotDecoded(ValueError):
    """A payload of a content type that is not decoded here: the project has not said that it may be."""


def content(
    job: Job, headers: Mapping[str, Any] | None = None, *, trusted: Container[str] = ()
) -> tuple[list[Any], dict[str, Any], dict[str, Any]]:
    """Decode a row's arguments, and what is to follow (callbacks, errbacks, chain, chord).

    Args:
        headers: its Celery headers, if they are known.
        trusted: content types that may be decoded beside JSON, YAML, msgpack and ``TRUSTED_CONTENT_TYPES``: a worker
            names those that it accepts from the broker.

    Raises:
        NotDecoded: the content type is none of these; a ValueError.
        ValueError: the body can't be decoded, or is pickled (never loaded).
    """
    kind = job.content_type
    if kind in PICKLE:
        raise ValueError("pickled body, not loaded")
    if kind not in PLAIN_DATA and kind not in settings.TRUSTED_CONTENT_TYPES and kind not in trusted:
        raise NotDecoded(
            f"{kind or 'unknown type'} is decoded by workers only; name it in RELIABLE_JOBS['TRUSTED_CONTENT_TYPES'] "
            "if decoding it can't run code"
        )
    body = bytes(job.body)
    compression = (headers_of(job) if headers is None else headers).get("compression")
    try:
        if compression:
            body = decompress(body, compression)
        args, kwargs, *embed = loads(body, job.content_type, job.content_encoding, accept=[job.content_type])
        return list(args), dict(kwargs), dict(embed[0] or {}) if embed else {}
    except SoftTimeLimitExceeded:
        raise
    except Exception as error:  # any registered codec may raise anything on hostile bytes
        raise ValueError(f"undecodable body: {error}") from error


def arguments(job: Job, *, trusted: Container[str] = ()) -> tuple[list[Any], dict[str, Any]]:
    """Decode a row's arguments.

    Raises:
        NotDecoded, ValueError: as :func:`content`.
    """
    args, kwargs, _ = content(job, trusted=trusted)
    return args, kwargs


def same_call(job: Job, rendered: Rendered) -> bool:
    """Whether a row asks for the same arguments as a freshly rendered call."""
    if job.task != rendered.task:
        return False
    if bytes(job.body) == rendered.body:
        return True
    try:
        theirs = loads(rendered.body, rendered.content_type, rendered.content_encoding, accept=[rendered.content_type])
        # The caller has just written that type, with the codec that would read it here.
        return arguments(job, trusted=(rendered.content_type,)) == (list(theirs[0]), dict(theirs[1]))
    except SoftTimeLimitExceeded:
        raise
    except Exception:  # compressed or exotic content that can't be compared is "other arguments"
        return False
