"""The words and the allowed moves."""

from __future__ import annotations

import itertools

import pytest
from celery import states

from reliable_jobs.models import Job
from reliable_jobs.status import CELERY_STATES, FINAL, TRANSITIONS, UNFINISHED, EventKind, Reason, Status


def test_every_status_but_sent_is_either_final_or_unfinished() -> None:
    assert {*FINAL, *UNFINISHED, Status.SENT} == set(Status)
    assert not {*FINAL} & {*UNFINISHED}


def test_every_status_has_its_transitions_and_its_celery_state() -> None:
    assert set(TRANSITIONS) == set(Status) == set(CELERY_STATES)


def test_a_settled_job_can_only_become_waiting_again() -> None:
    for status in FINAL:
        assert TRANSITIONS[status] == (Status.WAITING,)


def test_an_unfinished_job_can_reach_every_ending() -> None:
    for status in UNFINISHED:
        assert set(FINAL) <= set(TRANSITIONS[status])


def test_no_run_starts_from_a_running_row() -> None:
    assert Status.RUNNING not in TRANSITIONS[Status.RUNNING]


@pytest.mark.parametrize("status", list(Status))
def test_celery_calls_a_job_ready_exactly_when_it_is_final(status: Status) -> None:
    assert (CELERY_STATES[status] in states.READY_STATES) == (status in FINAL)


@pytest.mark.parametrize("words", [Status, Reason, EventKind])
def test_the_words_fit_their_columns(words: type[Status] | type[Reason] | type[EventKind]) -> None:
    column = {Status: (Job, "status"), Reason: (Job, "reason")}.get(words)
    room = column[0]._meta.get_field(column[1]).max_length if column else 20
    assert max(len(word) for word in words) <= room


def test_no_two_words_of_a_kind_read_the_same() -> None:
    for words in (Status, Reason, EventKind):
        for one, other in itertools.combinations(words, 2):
            assert one.label != other.label
