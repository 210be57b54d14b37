"""What a row's message holds: its headers and arguments, decoded."""

from __future__ import annotations

import bz2
import json
import lzma
import zlib
from collections.abc import Callable, Container, Mapping
from typing import Any

from celery.exceptions import SoftTimeLimitExceeded
from kombu.compression import decompress, get_decoder
from kombu.serialization import loads

from reliable_jobs.conf import settings
from reliable_jobs.message import debts
from reliable_jobs.message.row_to_message import PICKLE, Rendered
from reliable_jobs.models import Job

#: Content types whose decoding builds plain data and runs no code that the payload names. Any other codec that a
#: project registers with kombu may be pickle in disguise.
YAML = "application/x-yaml"
PLAIN_DATA = ("application/json", YAML, "application/x-msgpack")
#: Bytes that a process other than a worker makes of a payload. The sender's own limit is no help: a message from
#: elsewhere has none, and a few kilobytes can be compressed gigabytes.
DECODED_BYTES = 256 * 1024
_MERGE = "tag:yaml.org,2002:merge"
_LZMA_MEMORY = 128 * 1024 * 1024
#: By kombu's decoder, those of the standard library that can stop half-way.
_STOPPABLE: dict[Any, Callable[[], Any]] = {
    zlib.decompress: zlib.decompressobj,
    bz2.decompress: bz2.BZ2Decompressor,
    lzma.decompress: lambda: lzma.LZMADecompressor(memlimit=_LZMA_MEMORY),
}


def envelope_of(job: Job) -> dict[str, Any] | None:
    """The rest of a row's message; None where it can't be read: somebody may have written it by hand."""
    try:
        envelope = json.loads(job.envelope)
    except (RecursionError, ValueError):
        return None
    return envelope if isinstance(envelope, dict) else None


def headers_of(job: Job) -> dict[str, Any]:
    """The Celery headers of a row; {} when they can't be read."""
    headers = (envelope_of(job) or {}).get("headers")
    return headers if isinstance(headers, dict) else {}


class NotDecoded(ValueError):
    """A payload that is not decoded here: the project has not said that its content type may be, or it is too large."""


class TooLarge(NotDecoded):
    """More than the bytes that the caller allows."""


def content(
    job: Job, headers: Mapping[str, Any] | None = None, *, trusted: Container[str] = (), limit: int | None = None
) -> tuple[list[Any], dict[str, Any], dict[str, Any]]:
    """Decode a row's arguments, and what is to follow (callbacks, errbacks, chain, chord).

    Args:
        headers: its Celery headers, if they are known.
        trusted: content types that may be decoded beside JSON, YAML, msgpack and ``TRUSTED_CONTENT_TYPES``: a worker
            names those that it accepts from the broker.
        limit: bytes, decompressed and with YAML's aliases written out; None for a worker, which has to run the job.

    Raises:
        TooLarge: more than ``limit``; a NotDecoded.
        NotDecoded: the content type is none of these, or can't be decompressed within a limit; a ValueError.
        ValueError: the payload can't be decoded, or is pickled (never loaded).
    """
    kind = job.content_type
    if kind in PICKLE:
        raise ValueError("pickled payload, not loaded")
    if kind not in PLAIN_DATA and kind not in settings.TRUSTED_CONTENT_TYPES and kind not in trusted:
        raise NotDecoded(
            f"{kind or 'unknown type'} is decoded by workers only; name it in RELIABLE_JOBS['TRUSTED_CONTENT_TYPES'] "
            "if decoding it can't run code"
        )
    payload = bytes(job.payload)
    compression = (headers_of(job) if headers is None else headers).get("compression")
    try:
        if compression:
            payload = decompress(payload, compression) if limit is None else _decompressed(payload, compression, limit)
        if limit is not None and len(payload) > limit:
            raise TooLarge(f"more than {limit} bytes")
        if limit is not None and kind == YAML and _merges(payload):
            raise NotDecoded("YAML's merge keys are read by workers only")
        args, kwargs, *embed = loads(payload, job.content_type, job.content_encoding, accept=[job.content_type])
        if limit is not None and job.content_type != "application/json" and _is_larger((args, kwargs, embed), limit):
            raise TooLarge(f"more than {limit} bytes")
        return list(args), dict(kwargs), dict(embed[0] or {}) if embed else {}
    except (NotDecoded, SoftTimeLimitExceeded):
        raise
    except Exception as error:  # any registered codec may raise anything on hostile bytes
        raise ValueError(f"undecodable payload: {error}") from error


def _decompressed(payload: bytes, compression: str, limit: int) -> bytes:
    """At most one byte more than ``limit``."""
    make = _STOPPABLE.get(get_decoder(compression))
    if make is None:
        raise NotDecoded(f"{compression} is decompressed by workers only")
    data: bytes = make().decompress(payload, limit + 1)
    return data


def _merges(payload: bytes) -> bool:
    """Whether YAML merges mappings by their aliases: before 6.0.4 PyYAML copies them while it reads, so that each level
    of a few bytes can make it ten times as large. Nothing that dumps YAML writes merge keys."""
    if b"*" not in payload:
        return False
    import yaml  # kombu has it where it knows the content type

    events = yaml.parse(payload, Loader=yaml.SafeLoader)
    return any(getattr(event, "value", "") == "<<" or getattr(event, "tag", "") == _MERGE for event in events)


def _is_larger(value: Any, limit: int) -> bool:
    """Whether plain data has more than about ``limit`` characters when it is printed. An alias in YAML makes a value
    stand in many places, or in itself."""
    left, size = [value], 0
    while left and size <= limit:
        item = left.pop()
        size += 1 + (len(item) if isinstance(item, (str, bytes)) else 0)
        size += item.bit_length() // 3 if isinstance(item, int) else 0
        if isinstance(item, Mapping):
            left += [*item.keys(), *item.values()]
        elif isinstance(item, (list, tuple, set)):
            left += item
    return size > limit


def arguments(
    job: Job, *, trusted: Container[str] = (), limit: int | None = DECODED_BYTES
) -> tuple[list[Any], dict[str, Any]]:
    """Decode a row's arguments.

    Raises:
        NotDecoded, ValueError: as :func:`content`.
    """
    args, kwargs, _ = content(job, trusted=trusted, limit=limit)
    return args, kwargs


def to_follow(job: Job, limit: int) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    """The single tasks that a row's message says shall follow: its callbacks, and the rest of its chain, first to last.
    None where it can't be read: the message of another program may hold anything.

    Args:
        limit: as of :func:`content`.
    """
    try:
        follow = content(job, limit=limit)[2]
        links = [step for signature in follow.get("callbacks") or () for step in debts.jobs_of(signature)]
        chain = [step for signature in reversed(follow.get("chain") or ()) for step in debts.jobs_of(signature)]
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
        return [], []
    return links, chain


def same_call(job: Job, rendered: Rendered) -> bool:
    """Whether a row asks for the same arguments as a freshly rendered call."""
    if job.task != rendered.task:
        return False
    if bytes(job.payload) == rendered.payload:
        return True
    try:
        theirs = loads(
            rendered.payload, rendered.content_type, rendered.content_encoding, accept=[rendered.content_type]
        )
        # The caller has just written that type, with the codec that would read it here.
        return arguments(job, trusted=(rendered.content_type,), limit=None) == (list(theirs[0]), dict(theirs[1]))
    except SoftTimeLimitExceeded:
        raise
    except Exception:  # compressed or exotic content that can't be compared is "other arguments"
        return False
