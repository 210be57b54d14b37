"""Worker: what becomes of messages that it can't run, and of children that die."""

from __future__ import annotations

from qa.mutants.mutant import BAD, I2, I7, Mutant

MUTANTS = [
    Mutant(
        "reject-on-worker-lost",
        "I2",
        "worker/requests.py",
        "            self.died(EventKind.CRASH, how)\n            self.reject(requeue=True)\n",
        "            self.died(EventKind.CRASH, how)\n            self.acknowledge()\n",
        (f"{I2}::test_a_child_killed_in_the_function_gives_the_message_back",),
    ),
    Mutant(
        "django-starts-unverified",
        "I2",
        "apps.py",
        "        register.verify()\n",
        "",
        ("tests/compat/test_compat.py::test_django_does_not_start_without_a_name_and_says_so",),
    ),
    Mutant(
        "worker-starts-unverified",
        "I2",
        "worker/bootstrap.py",
        "        register.verify(load=True)\n",
        "        pass\n",
        ("tests/compat/test_compat.py::test_a_worker_does_not_start_without_a_name_and_says_so",),
    ),
    Mutant(
        "parking",
        "I7",
        "worker/bootstrap.py",
        '    app.steps["consumer"].add(ParkingStep)\n',
        "",
        (
            f"{I7}::test_an_unknown_foreign_task_is_parked_and_runs_once_it_is_known",
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
        ("tests/promises/test_adversary.py::test_a_threads_worker_works_on_after_its_connection_was_cut",),
    ),
]
