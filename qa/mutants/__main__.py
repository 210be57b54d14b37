"""Switches each protection off in turn and requires a red test: ``python -m qa.mutants [--only NAME …] [--jobs N]``.

A promise whose protection can be removed unnoticed is not tested. Each mutant is one exact replacement in a copy of the
tree; the tests that guard it are first run unchanged, and must be green. Needs the servers of the promise tests: those
of DATABASE_URL and BROKER_URL, or the usual local ones.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
#: A mutant that makes its test hang is found out, but not by the assertion that was meant to.
TIMEOUT = 240.0
#: Most of the protections don't exist on SQLite: without these, their tests are red, or skipped, before any mutant is.
SERVERS = {
    "DATABASE_URL": "postgresql://postgres@127.0.0.1:5432/postgres",
    "BROKER_URL": "amqp://guest:guest@127.0.0.1:5672//",
}
_LEFT_OUT = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "*.egg-info", "node_modules")

I1 = "tests/promises/test_promise_1_atomic_enqueue.py"
I2 = "tests/promises/test_promise_2_nothing_forgotten.py"
I3 = "tests/promises/test_promise_3_exactly_once_effects.py"
I4 = "tests/promises/test_promise_4_one_live_run.py"
I5 = "tests/promises/test_promise_5_outages_cost_time.py"
I6 = "tests/promises/test_promise_6_bounded_loops.py"
I7 = "tests/promises/test_promise_7_no_silent_discard.py"
ADOPTION = "tests/adopt/test_adoption.py"
BAD = "tests/worker/test_bad_messages.py"


@dataclasses.dataclass(frozen=True)
class Mutant:
    """One protection, and the replacement that switches it off.

    Args:
        name: what is switched off.
        promises: the ids that rest on it.
        file: below the package.
        old: text that occurs in the file once.
        new: what stands there instead.
        tests: node ids of which at least one must fail.
        also: further replacements (file, old, new), where one protection is kept twice.
    """

    name: str
    promises: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    also: tuple[tuple[str, str, str], ...] = ()


MUTANTS = [
    # --- enqueue and dispatch
    Mutant(
        "publish-before-commit",
        "I1",
        "dispatch/on_commit.py",
        "transaction.on_commit(hook, using=alias)",
        "hook()",
        (f"{I1}::test_no_message_goes_out_before_the_commit",),
    ),
    Mutant(
        "weak-batch",
        "I1",
        "dispatch/on_commit.py",
        "return self._by_alias.setdefault(alias, weakref.WeakValueDictionary())",
        "return self._by_alias.setdefault(alias, {})",
        (f"{I1}::test_a_savepoint_rolled_back_takes_its_jobs_along_and_the_others_go_out_in_one_publish",),
    ),
    Mutant(
        "one-hook-for-all",
        "I1 I2",
        "dispatch/on_commit.py",
        "transaction.on_commit(hook, using=alias)",
        "len(hook.pending) > 1 or transaction.on_commit(hook, using=alias)",
        (f"{I1}::test_a_savepoint_rolled_back_takes_its_jobs_along_and_the_others_go_out_in_one_publish",),
    ),
    Mutant(
        "encoded-between-copies",
        "I1",
        "enqueue/template.py",
        "    if not _PLAIN.issuperset(map(type, args)) or not _PLAIN.issuperset(map(type, kwargs.values())):\n"
        "        return None\n",
        "",
        # The others leave a connection behind that the fixture's end waits for.
        (
            "tests/enqueue/test_template.py::test_values_may_be_encoded_from_the_database_that_they_are_written_to[Tolerant-4]",
        ),
    ),
    Mutant(
        "calls-between-copies",
        "I1",
        "enqueue/bulk.py",
        "while block := list(itertools.islice(taken, BLOCK)):",
        "for block in [taken]:",
        ("tests/enqueue/test_template.py::test_calls_may_come_from_the_database_that_they_are_written_to",),
    ),
    Mutant(
        "mandatory",
        "I7",
        "dispatch/amqp_frames.py",
        "(0, exchange, routing_key, mandatory, False)",
        "(0, exchange, routing_key, False, False)",
        (f"{I5}::test_a_returned_message_counts_as_not_sent_is_visible_and_goes_out_when_the_binding_is_there",),
    ),
    Mutant(
        "breaker",
        "I9",
        "dispatch/publisher.py",
        "            self._open = True\n",
        "            self._open = False\n",
        (f"{I5}::test_a_broker_that_is_away_at_commit_delays_the_job_and_not_the_request",),
    ),
    Mutant(
        "probe-with-a-body",
        "I9",
        "dispatch/connection.py",
        '"reliable_jobs.probe", b"probe",',
        '"reliable_jobs.probe", b"",',
        (f"{I5}::test_a_broker_under_its_memory_alarm_never_confirms_and_loses_nothing",),
    ),
    Mutant(
        "size-limit",
        "I7",
        "enqueue/render.py",
        "if len(payload) > (MAX_FOLLOWING_BYTES if self.follows else settings.MAX_BODY_BYTES):",
        "if False:",
        (f"{I7}::test_an_oversized_call_is_refused_at_the_call_and_writes_nothing",),
    ),
    # --- claim
    Mutant(
        "row-lock",
        "I4",
        "lifecycle/sql.py",
        "annotate(now=Now()).lock().values_list(",
        "annotate(now=Now()).values_list(",
        (f"{I4}::test_of_five_copies_at_once_one_runs",),
    ),
    Mutant(
        "skip-locked",
        "I4",
        "models.py",
        "skip_locked=features.has_select_for_update_skip_locked and not wait,",
        "skip_locked=False,",
        (f"{I7}::test_a_cancel_of_a_running_job_waits_for_nothing_and_says_running",),
    ),
    Mutant(
        "wait-for-own-token",
        "I4 I6",
        "lifecycle/claims.py",
        ".lock(wait=True)",
        ".lock()",
        (f"{I4}::test_a_claim_waits_for_a_copy_that_only_looks_at_its_row",),
    ),
    Mutant(
        "rev-check",
        "I3",
        "lifecycle/claims.py",
        "if job.rev != rev:",
        "if False:",
        (f"{I7}::test_a_message_of_an_earlier_content_is_dropped",),
    ),
    Mutant(
        "due-check",
        "I2",
        "lifecycle/claims.py",
        "if job.due_at > now:",
        "if False:",
        (f"{I7}::test_a_message_that_comes_before_its_job_is_due_does_nothing",),
    ),
    Mutant(
        "final-check",
        "I3",
        "lifecycle/claims.py",
        "if job.status != Status.WAITING:\n        # Neither",
        "if job.status == Status.RUNNING:\n        # Neither",
        (f"{I4}::test_of_five_copies_one_after_the_other_one_runs",),
    ),
    Mutant(
        "careful-path",
        "I6",
        "run/arrival.py",
        "commits_claim = not task.atomic or redelivered or (isinstance(send, int) and send > 1)",
        "commits_claim = not task.atomic",
        (f"{I6}::test_a_job_that_kills_its_process_ends_failed_and_its_neighbours_finish_unblamed[prefork]",),
    ),
    Mutant(
        "hold-redelivered",
        "I2",
        "run/delivery.py",
        "(REDELIVERY_PATIENCE if delivery.redelivered else first)",
        "first",
        (f"{I2}::test_a_redelivered_message_is_held_until_the_row_of_the_killed_run_is_free",),
    ),
    Mutant(
        "suspects-alone",
        "I6",
        "lifecycle/claims.py",
        "if job.crashes and _another_suspect_runs(job, using, worker):",
        "if False:",
        (f"{I6}::test_suspects_are_started_one_at_a_time_on_a_worker",),
    ),
    # --- adoption of a whole app
    Mutant(
        "adopted-not-atomic",
        "I2",
        "task/adopted_task.py",
        "    atomic = False\n    reruns = False",
        "    reruns = False",
        (f"{ADOPTION}::test_e1_an_adopted_task_commits_as_it_goes",),
    ),
    Mutant(
        "adopted-begun-once-after-a-crash",
        "I2",
        "run/execution.py",
        "return claim.job.crashes > (settings.MAX_CRASHES if task.reruns else 1)",
        "return claim.job.crashes > settings.MAX_CRASHES",
        (f"{ADOPTION}::test_e1_an_adopted_app_keeps_the_document_whose_script_fails_or_is_killed",),
    ),
    Mutant(
        "adopted-begun-once-after-a-database-error",
        "I2",
        "run/outcomes.py",
        "if task.reruns and isinstance(error, DatabaseError)",
        "if isinstance(error, DatabaseError)",
        (f"{ADOPTION}::test_e1_a_database_error_in_an_adopted_task_runs_it_again_only_if_it_may_run_twice",),
    ),
    Mutant(
        "adopted-left-out",
        "I2",
        "task/adopted_task.py",
        "if not _is_task(order) or why_plain(cls, order) is None:",
        "if True:",
        (f"{ADOPTION}::test_e4_named_tasks_are_left_out",),
    ),
    Mutant(
        "codec-of-the-projects-own",
        "I7",
        "message/decode.py",
        "if kind not in PLAIN_DATA and kind not in settings.TRUSTED_CONTENT_TYPES and kind not in trusted:",
        "if False:",
        (
            "tests/project/test_security.py::test_e12_a_codec_of_the_projects_own_is_decoded_by_no_page_or_command_unless_it_may_be",
        ),
    ),
    Mutant(
        "rollback-call-undone-alone",
        "I3",
        "run/outcomes.py",
        "                with transaction.atomic(using=claim.using):\n                    call()",
        "                call()",
        ("tests/task/test_on_rollback.py::test_e2_a_call_that_raises_is_undone_alone",),
    ),
    # --- run and settle
    Mutant(
        "reconnected",
        "I3",
        "run/round_trips.py",
        "if run.session is None or connection.connection is run.session:",
        "if True:",
        ("tests/run/test_ends_of_runs.py::test_b6_a_task_that_connects_anew_does_not_succeed_without_its_effects",),
    ),
    Mutant(
        "conflict-window",
        "I6",
        "backoff.py",
        "return max(CONFLICT_WINDOW, limit * (CONFLICT_PAUSE + 2.0 * run))",
        "return CONFLICT_WINDOW",
        ("tests/run/test_ends_of_runs.py::test_a12_a_long_job_that_always_conflicts_ends_failed",),
    ),
    Mutant(
        "savepoint",
        "I3",
        "run/round_trips.py",
        "            self._leave(error)\n        except BaseException as worse:\n",
        "            self._leave(None)\n        except BaseException as worse:\n",
        (f"{I3}::test_a_body_that_fails_leaves_nothing_but_its_failure",),
    ),
    Mutant(
        "deferred-constraints",
        "I3",
        "run/round_trips.py",
        'before = ["SET CONSTRAINTS ALL IMMEDIATE", self._connection.ops.savepoint_commit_sql(self._name)]',
        "before = [self._connection.ops.savepoint_commit_sql(self._name)]",
        (f"{I3}::test_a_deferred_constraint_that_would_fail_at_commit_fails_the_body_instead",),
        also=(("run/execution.py", "return recovery.after_broken_transaction(task, run, ended, error)", "raise"),),
    ),
    Mutant(
        "broken-commit-is-looked-into",
        "I2 I3",
        "run/execution.py",
        "return recovery.after_broken_transaction(task, run, ended, error)",
        "raise",
        (f"{I3}::test_a_body_that_commits_by_hand_is_told_what_to_do_and_does_not_count_as_done",),
    ),
    Mutant(
        "broken-commit-is-recorded",
        "I2",
        "run/execution.py",
        "return recovery.after_broken_transaction(task, run, ended, error)",
        "raise",
        (f"{I3}::test_a_body_that_commits_by_hand_is_told_what_to_do_and_does_not_count_as_done",),
        # What nobody has looked into is an error around the run, and is recorded as one: by the delivery, or by the
        # tracer's wrapper.
        also=(
            (
                "run/delivery.py",
                "job's history says so\n        unreported_errors.write_interruption(task, trail, error)\n",
                "job's history says so\n        raise\n",
            ),
            (
                "run/tracing.py",
                "(unreported_errors.write_failure if fired else unreported_errors.write_interruption)"
                "(task, trail, error)\n",
                "return None\n",
            ),
        ),
    ),
    Mutant(
        "fence-epoch",
        "I4",
        "lifecycle/transition.py",
        '{"epoch": job.epoch, "status": Status(job.status)}',
        "{}",
        (f"{I4}::test_a_claim_without_a_token_is_fenced_by_the_epoch_alone",),
    ),
    Mutant(
        "fence-token",
        "I4",
        "lifecycle/transition.py",
        '{"token": token_now, "status": Status.RUNNING}',
        "{}",
        (f"{I4}::test_a_worker_stopped_past_its_lease_wakes_up_to_nothing",),
    ),
    Mutant(
        "fenced-block",
        "I4",
        "task/control.py",
        "if run.lost or not self._holds(run):",
        "if False:",
        (f"{I4}::test_a_worker_stopped_past_its_lease_wakes_up_to_nothing[slow_outside]",),
    ),
    Mutant(
        "heartbeat",
        "I4",
        "run/execution.py",
        "    beat = native.Thread(functools.partial(_heartbeat, run))\n",
        "    beat = native.Thread(lambda stop: None)\n",
        (f"{I4}::test_a_non_atomic_run_keeps_its_lease_while_it_lives",),
    ),
    Mutant(
        "errors-told-apart",
        "I5",
        "run/outcomes.py",
        "if task.reruns and isinstance(error, DatabaseError) and db_errors.is_transient(error, run.claim.using):",
        "if False:",
        (f"{I5}::test_a_deadlock_between_two_bodies_costs_neither_an_attempt",),
    ),
    Mutant(
        "hold-without-database",
        "I5",
        "run/arrival.py",
        "            if time.monotonic() >= until:\n",
        "            if True:\n",
        (f"{I5}::test_a_database_away_at_the_claim_means_held_and_neither_run_nor_failed[prefork]",),
    ),
    Mutant(
        "backend-in-line",
        "I3",
        "run/delivery.py",
        "            _align_backend(task, job)\n",
        "            pass\n",
        (f"{I3}::test_killed_between_the_settlement_and_the_ack_the_effect_happened_once_and_the_result_is_told",),
    ),
    Mutant(
        "crash-bound",
        "I6",
        "run/execution.py",
        "return claim.job.crashes > (settings.MAX_CRASHES if task.reruns else 1)",
        "return False",
        (f"{I6}::test_a_job_that_kills_its_process_ends_failed_and_its_neighbours_finish_unblamed[prefork]",),
    ),
    Mutant(
        "crash-given-back",
        "I6",
        "lifecycle/settle.py",
        "crashes=job.crashes - 1,",
        "crashes=job.crashes,",
        (f"{I2}::test_a_child_killed_in_the_body_gives_the_message_back_without_any_sweep",),
    ),
    Mutant(
        "interruption-bound",
        "I6",
        "run/recovery.py",
        "if not task.reruns or count > settings.MAX_INTERRUPTIONS:",
        "if False:",
        (f"{I6}::test_a_job_that_takes_its_database_session_down_is_bounded",),
    ),
    Mutant(
        "sys-exit",
        "I6",
        "run/outcomes.py",
        "    if ends_process(error):\n        raise error",
        "    if isinstance(error, SystemExit):\n        raise error",
        (f"{I6}::test_sys_exit_in_a_thread_pool_fails_the_job_and_not_the_worker",),
    ),
    Mutant(
        "time-limit-is-a-crash",
        "I6",
        "run/recovery.py",
        "return bool(time.monotonic() - began >= float(limit) - 0.5)",
        "return False",
        (f"{I6}::test_a_job_over_its_hard_time_limit_is_killed_recorded_and_bounded",),
    ),
    Mutant(
        "expiry",
        "I7",
        "run/execution.py",
        "if job.expires_at is not None and job.expires_at <= run.claim.now:",
        "if False:",
        (f"{I7}::test_an_expired_job_ends_expired_and_never_runs",),
    ),
    Mutant(
        "commit-only-when-the-fence-holds",
        "I4",
        "run/round_trips.py",
        "SELECT 1 / count(*) FROM won",
        "SELECT 1 FROM won",
        ("tests/run/test_savepoint.py::test_a_settlement_whose_fence_does_not_hold_commits_nothing",),
    ),
    Mutant(
        "autocommit-for-the-begin-alone",
        "I3",
        "compat/psycopg.py",
        "    finally:\n        driver._autocommit = False\n",
        "    finally:\n        pass\n",
        ("tests/run/test_joined.py::test_in_the_body_the_driver_is_as_in_any_transaction_of_djangos",),
    ),
    # --- bundles
    Mutant(
        "bundle-taken-apart",
        "I2 I6",
        "run/bundle.py",
        "kept_connections.active and not redelivered\n",
        "kept_connections.active\n",
        ("tests/run/test_bundle.py::test_a_process_that_is_told_to_stop_keeps_nothing_and_the_jobs_run_alone",),
    ),
    Mutant(
        "bundle-savepoints",
        "I3",
        "run/bundle_transaction.py",
        "with transaction.atomic(using=self.using) if self.singly else nullcontext():",
        "with nullcontext():",
        ("tests/run/test_bundle.py::test_one_that_does_not_succeed_plainly_leaves_its_neighbours_alone",),
    ),
    Mutant(
        "bundle-rolled-back",
        "I3",
        "run/bundle_transaction.py",
        "            self._broken, self.worth_singling = True, not for_good\n",
        "            pass\n",
        ("tests/run/test_bundle.py::test_one_that_does_not_succeed_plainly_leaves_its_neighbours_alone",),
    ),
    Mutant(
        "bundle-claim",
        "I4",
        "lifecycle/sql.py",
        "task=_SOME_TASK, status=Status.WAITING, due_at__lte=Now()",
        "task=_SOME_TASK, due_at__lte=Now()",
        ("tests/run/test_bundle.py::test_a_copy_of_a_bundle_runs_nothing_again",),
        also=(("lifecycle/settle.py", "AND job.status = '{Status.WAITING}'", ""),),
    ),
    # --- the message
    Mutant(
        "ack-before-the-run",
        "I2",
        "task/reliable_task.py",
        "    acks_late = True\n",
        "    acks_late = False\n",
        (f"{I2}::test_a_worker_killed_in_the_body_leaves_the_job_to_the_next_worker_without_any_sweep",),
    ),
    Mutant(
        "reject-on-worker-lost",
        "I2",
        "worker/requests.py",
        "            self.died(EventKind.CRASH, how)\n            self.reject(requeue=True)\n",
        "            self.died(EventKind.CRASH, how)\n            self.acknowledge()\n",
        (f"{I2}::test_a_child_killed_in_the_body_gives_the_message_back_without_any_sweep",),
    ),
    Mutant(
        "errors-around-a-run-recorded",
        "I6 I7",
        "run/delivery.py",
        "job's history says so\n        unreported_errors.write_interruption(task, trail, error)\n",
        "job's history says so\n        raise\n",
        ("tests/run/test_unreported.py::test_b1_an_error_of_the_worker_is_tried_again_and_ends_the_job",),
    ),
    Mutant(
        "starts-of-hooks-counted",
        "I6",
        "task/guards.py",
        "        stages.delivery.claim_early(task, trail)\n",
        "        pass\n",
        (f"{I6}::test_b1_a_hook_that_kills_its_process_before_the_run_ends_its_job",),
    ),
    Mutant(
        "errors-of-hooks-recorded",
        "I6 I7",
        "task/guards.py",
        "            setattr(cls, name, guarded)\n",
        "            pass\n",
        ("tests/run/test_unreported.py::test_b1_what_celery_fails_for_fails_the_job_at_once",),
    ),
    Mutant(
        "time-limits-reach-the-function",
        "I5",
        "dispatch/on_commit.py",
        "            raise  # the task function's that commits here; the rows are safe\n",
        "            pass\n",
        ("tests/dispatch/test_publisher_errors.py::test_b3_a_time_limit_during_a_publish_reaches_the_function",),
    ),
    Mutant(
        "parking",
        "I7",
        "worker/bootstrap.py",
        '    app.steps["consumer"].add(ParkingStep)\n',
        "",
        (
            f"{I7}::test_an_unknown_task_from_elsewhere_is_parked_and_runs_once_a_worker_knows_it",
            f"{I7}::test_an_undecodable_body_is_parked_with_its_bytes",
        ),
    ),
    Mutant(
        "outlive-what-cannot-be-read",
        "I7",
        "worker/parking.py",
        "        around_each_message(consumer, functools.partial(_outlive, consumer))\n",
        "",
        (f"{BAD}::test_a_message_that_no_worker_can_read_is_parked_and_ends_none[a body of two parts]",),
    ),
    Mutant(
        "misshapen-messages",
        "I7",
        "worker/requests.py",
        "        if why is not None:\n",
        "        if False:\n",
        (f"{BAD}::test_a_message_that_no_worker_can_read_is_parked_and_ends_none[a follow-up that is a text]",),
    ),
    Mutant(
        "prefetch-count-left-alone",
        "I2",
        "worker/bootstrap.py",
        "        instance.app.conf.worker_enable_prefetch_count_reduction = False\n",
        "        pass\n",
        ("tests/promises/test_adversary.py::test_a_worker_with_threads_works_on_after_its_broker_connection_was_cut",),
    ),
    Mutant(
        "the-tracers-errors-answered",
        "I2",
        "task/reliable_task.py",
        "tracing.that_answers(self, tracer) if tracer is not None else None",
        "tracer",
        ("tests/promises/test_adversary.py::test_a_result_backend_that_fails_starves_no_worker",),
    ),
    # --- sweep and prune
    Mutant(
        "sweep-due",
        "I2",
        "sweep/sweeper.py",
        "        _publish_due(app, alias, report, on_backlog)\n        _publish_overdue",
        "        _publish_overdue",
        (f"{I2}::test_work_due_later_waits_in_the_database_and_survives_the_broker",),
    ),
    Mutant(
        "sweep-overdue",
        "I2",
        "sweep/sweeper.py",
        "        _publish_overdue(app, alias, report)\n",
        "",
        (f"{I1}::test_a_producer_killed_between_commit_and_publish_leaves_a_job_that_the_sweeper_publishes",),
    ),
    Mutant(
        "rescue",
        "I2",
        "sweep/sweeper.py",
        "rescued = lifecycle.rescue(alias, settings.SWEEP_LIMIT, actor=actor)",
        "rescued = 0",
        (f"{I4}::test_a_worker_stopped_past_its_lease_wakes_up_to_nothing",),
    ),
    Mutant(
        "count-the-send",
        "I8",
        "sweep/sweeper.py",
        "sends=sends + 1, check_at=Now() + datetime.timedelta(seconds=pause)",
        "sends=sends",
        (f"{I2}::test_a_sweep_counts_its_send_so_that_the_next_one_does_not_repeat_it",),
    ),
    Mutant(
        "doubling",
        "I8",
        "sweep/sweeper.py",
        "return min(limit, grace * 2.0 ** min(max(sends, 1) - 1, 32))",
        "return min(limit, grace)",
        (f"{I2}::test_every_send_doubles_the_time_to_the_next_one",),
    ),
    Mutant(
        "overtaking",
        "I8",
        "sweep/sweeper.py",
        "    return newest\n",
        "    return {}\n",
        ("tests/sweep/test_sweeper.py::test_in_a_queue_that_moves_only_what_was_overtaken_is_sent_again",),
    ),
    Mutant(
        "overtaking-slack",
        "I8",
        "sweep/sweeper.py",
        "due_at__lt=due_at - datetime.timedelta(seconds=OVERTAKING_SLACK)",
        "due_at__lt=due_at",
        ("tests/sweep/test_sweeper.py::test_being_overtaken_by_a_little_is_not_being_lost",),
    ),
    Mutant(
        "prune-predicate",
        "I2",
        "sweep/pruner.py",
        'ids = list(rows.lock().values_list("pk", flat=True)[:size])',
        'ids = list(rows.values_list("pk", flat=True)[:size])',
        (f"{I7}::test_a_requeue_that_races_a_prune_keeps_the_job_and_its_history",),
    ),
]


def copy_of_the_tree(directory: Path) -> Path:
    return Path(shutil.copytree(ROOT, directory / "tree", ignore=_LEFT_OUT))


def mutated(mutant: Mutant, package: Path) -> dict[Path, str]:
    """The package's files as the mutant has them.

    Raises:
        ValueError: the text is not there exactly once, or the outcome is no Python: the list must follow the code.
    """
    files: dict[Path, str] = {}
    for name, old, new in ((mutant.file, mutant.old, mutant.new), *mutant.also):
        path = package / name
        text = files[path] if path in files else path.read_text()
        if text.count(old) != 1:
            raise ValueError(f"{mutant.name}: {name} holds {old!r} {text.count(old)} times, not once")
        files[path] = text.replace(old, new)
        try:
            compile(files[path], name, "exec")
        except SyntaxError as error:
            raise ValueError(f"{mutant.name}: {name} would be no Python: {error}") from error
    return files


def apply(mutant: Mutant, tree: Path) -> None:
    """Raises ValueError; see mutated()."""
    for path, text in mutated(mutant, tree / "reliable_jobs").items():
        path.write_text(text)


def run_tests(tree: Path, tests: Sequence[str], *, patience: float, timeout: float = TIMEOUT) -> tuple[int, str]:
    """Exit code of pytest (None-like -1 for a time-out) and what it said."""
    argv = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    own_database = f"test_mutant_{uuid.uuid4().hex[:8]}"  # several run at a time
    env = {
        **SERVERS,
        **os.environ,
        "PATIENCE": str(patience),
        "PYTHONPATH": str(tree),
        "TEST_DATABASE_NAME": own_database,
    }
    try:
        done = subprocess.run(argv, cwd=tree, env=env, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired as late:
        return -1, str(late.stdout or "")
    return done.returncode, done.stdout + done.stderr


def try_mutant(mutant: Mutant) -> tuple[Mutant, str, float, str]:
    """The mutant, its verdict, the seconds it took, and what pytest said."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="rj-mutant-") as directory:
        try:
            tree = copy_of_the_tree(Path(directory))
            apply(mutant, tree)
        except ValueError as error:
            return mutant, "NOT APPLIED", 0.0, str(error)
        code, said = run_tests(tree, mutant.tests, patience=15)
    verdict = {1: "red", 0: "SURVIVED", -1: "TIMED OUT"}.get(code, f"BROKEN ({code})")
    if verdict == "red" and not re.search(r"^\d+ failed", said, re.MULTILINE):
        verdict = "BROKEN (set-up)"  # an error in a fixture shows nothing
    return mutant, verdict, time.monotonic() - began, said


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m qa.mutants", description=__doc__)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these mutants only")
    parser.add_argument("--jobs", type=int, default=2, help="mutants tried at the same time (default %(default)s)")
    parser.add_argument("--list", action="store_true", help="say which there are, and whether they apply")
    parser.add_argument("--no-baseline", action="store_true", help="do not run the tests unchanged first")
    parser.add_argument("--verbose", action="store_true", help="show what pytest said of every mutant")
    options = parser.parse_args(argv)
    unknown = set(options.only or ()) - {mutant.name for mutant in MUTANTS}
    if unknown:
        parser.error(f"no such mutant: {', '.join(sorted(unknown))}")
    chosen = [mutant for mutant in MUTANTS if not options.only or mutant.name in options.only]
    if options.list:
        return _list(chosen)
    if not options.no_baseline:
        tests = sorted({test for mutant in chosen for test in mutant.tests})
        code, said = run_tests(ROOT, tests, patience=45, timeout=5 * TIMEOUT)
        if code != 0:
            print(said[-8000:])
            print("The tests are red without any mutant: nothing to learn from mutants.")
            return 1
        print(f"{len(tests)} tests green without a mutant.")
    survivors = 0
    print(f"{'protection switched off':28} {'promises':9} {'file':23} {'verdict':15} seconds  what the test said")
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as executor:
        for mutant, verdict, seconds, said in executor.map(try_mutant, chosen):
            told = re.findall(r"^E +(.+)$", said, re.MULTILINE)
            why = told[0][:80] if told and verdict == "red" else ""
            print(
                f"{mutant.name:28} {mutant.promises:9} {mutant.file:23} {verdict:15} {seconds:7.0f}  {why}", flush=True
            )
            if verdict != "red":
                survivors += 1
            if verdict != "red" or options.verbose:
                print(said[-3000:])
    print(f"{len(chosen)} protections switched off, {len(chosen) - survivors} noticed.")
    return 1 if survivors else 0


def _list(chosen: Sequence[Mutant]) -> int:
    wrong = 0
    for mutant in chosen:
        try:
            mutated(mutant, ROOT / "reliable_jobs")
        except ValueError as error:
            wrong += 1
            print(f"NOT APPLIED  {error}")
        else:
            print(f"{mutant.name:28} {mutant.promises:9} {mutant.file}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
