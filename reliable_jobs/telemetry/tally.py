"""Counts that are kept as plain numbers until a thread adds them to prometheus-client's metrics, once a second.

A count takes about a microsecond here. prometheus-client takes three to four for each value where the children of a
pool have theirs in files, and a job changes six values. The thread is started by the first count of a process, and
waits for the next one while nothing is pending.

What is pending is carried over when the process ends, too, and before it is scraped itself. Only a process that is
killed (``kill -9``, a hard time limit, no memory) loses the counts of its last second.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from bisect import bisect_left
from collections.abc import Mapping
from typing import Any

from celery.exceptions import SoftTimeLimitExceeded
from prometheus_client import Counter, Histogram

from reliable_jobs.compat.prometheus import observe_many

logger = logging.getLogger(__name__)

#: Seconds from a count to when it is carried over, at most; and from one time to the next, at least.
PAUSE = 1.0

#: The upper bounds of the histograms' buckets. Seconds.
BUCKETS = (0.005, 0.025, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 1800.0, 7200.0)

#: By metric, task, queue, and for some metrics a status.
_Key = tuple[Any, ...]


class _Seen:
    """Values that are pending for a histogram: how many in each bucket, the last being those above all bounds."""

    __slots__ = ("buckets", "total")

    def __init__(self) -> None:
        self.buckets = [0] * (len(BUCKETS) + 1)
        self.total = 0.0


_counts: dict[_Key, int] = {}
_seen: dict[_Key, _Seen] = {}
_pending = threading.Event()
_thread: threading.Thread | None = None

#: Held while numbers are carried over, and while the process forks: prometheus-client has one lock for all of its
#: files, and a child that is forked while another thread holds that would wait for ever.
_carrying = threading.RLock()
#: Held for a moment, by whoever counts. Whoever needs both takes it second.
_counting = threading.RLock()


def add(*key: Any, observed: tuple[Histogram, float] | None = None) -> None:
    """Count one.

    Args:
        key: a :class:`prometheus_client.Counter` and the values of its labels, beginning with task and queue.
        observed: a histogram with :data:`BUCKETS` and the labels task and queue, and what it observes, in seconds.
    """
    with _counting:
        carried_later = bool(_counts) or _wake()
        _counts[key] = _counts.get(key, 0) + 1
        if observed is not None:
            histogram, value = observed
            labelled = histogram, key[1], key[2]
            seen = _seen.get(labelled)
            if seen is None:
                seen = _seen[labelled] = _Seen()
            seen.buckets[bisect_left(BUCKETS, value)] += 1
            seen.total += value
    if not carried_later:
        carry_over()


def carry_over(**kwargs: Any) -> None:
    """Add what is pending to the metrics. A receiver of Celery's signals, too.

    Raises:
        celery.exceptions.SoftTimeLimitExceeded: it was meant for the task function that runs in this thread.
    """
    global _counts, _seen
    with _carrying:
        with _counting:
            counts, _counts = _counts, {}
            seen, _seen = _seen, {}
        try:
            _carry(counts, seen)
        except SoftTimeLimitExceeded:
            raise
        except Exception:  # the disk is full, the directory was removed
            logger.exception("Counts for Prometheus were lost: %d kinds, or some of them.", len(counts))


def _carry(counts: Mapping[_Key, int], seen: Mapping[_Key, _Seen]) -> None:
    counter: Counter
    for (counter, *labels), count in counts.items():
        counter.labels(*labels).inc(count)
    for (histogram, *labels), values in seen.items():
        observe_many(histogram.labels(*labels), values.buckets, values.total)


def _wake() -> bool:
    """Have the thread carry over what is counted next. Returns False where there is no thread, and none can start."""
    global _thread
    if _thread is None:
        thread = threading.Thread(target=_keep_carrying, name="reliable_jobs-counts", args=(_pending,), daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the process has as many threads as it may, or ends
            return False
        _thread = thread
    _pending.set()
    return True


def _keep_carrying(pending: threading.Event) -> None:
    while pending.wait():
        pending.clear()
        time.sleep(PAUSE)
        carry_over()


def _before_fork() -> None:
    _carrying.acquire()
    _counting.acquire()


def _after_fork() -> None:
    _counting.release()
    _carrying.release()


def _after_fork_in_child() -> None:
    """What is pending is the parent's, and so is the thread, which may have been inside its event."""
    global _counts, _seen, _pending, _thread
    _counts, _seen, _pending, _thread = {}, {}, threading.Event(), None
    _after_fork()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child)
