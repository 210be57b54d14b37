"""What a row's message holds: its headers and arguments, decoded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from celery.exceptions import SoftTimeLimitExceeded
from kombu.compression import decompress
from kombu.serialization import loads

from reliable_jobs.message import PICKLE, Rendered
from reliable_jobs.models import Job


def headers_of(job: Job) -> dict[str, Any]:
    """The Celery headers of a row; {} when they can't be read."""
    try:
        headers = json.loads(job.envelope)["headers"]
    except (ValueError, KeyError, TypeError):
        return {}
    return headers if isinstance(headers, dict) else {}


def content(job: Job, headers: Mapping[str, Any] | None = None) -> tuple[list[Any], dict[str, Any], dict[str, Any]]:
    """Decode a row's arguments, and what is to follow (callbacks, errbacks, chain, chord).

    Args:
        headers: its Celery headers, if they are known.

    Raises:
        ValueError: the body can't be decoded, or is pickled (never loaded).
    """
    if job.content_type in PICKLE:
        raise ValueError("pickled body, not loaded")
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


def arguments(job: Job) -> tuple[list[Any], dict[str, Any]]:
    """Decode a row's arguments.

    Raises:
        ValueError: as :func:`content`.
    """
    args, kwargs, _ = content(job)
    return args, kwargs


def same_call(job: Job, rendered: Rendered) -> bool:
    """Whether a row asks for the same arguments as a freshly rendered call."""
    if job.task != rendered.task:
        return False
    if bytes(job.body) == rendered.body:
        return True
    try:
        theirs = loads(rendered.body, rendered.content_type, rendered.content_encoding, accept=[rendered.content_type])
        return arguments(job) == (list(theirs[0]), dict(theirs[1]))
    except SoftTimeLimitExceeded:
        raise
    except Exception:  # compressed or exotic content that can't be compared is "other arguments"
        return False
