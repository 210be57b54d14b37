"""The random-fault campaign: ``python -m qa.chaos --seconds 120 --seeds 1-3``.

One campaign is one seed. In the order of its life, a file each:

    sites/                        Django projects written out by hand (``--site``), each with its servers and pools
    apps, instruments             their processes note what they publish, and their clocks can be turned
    ledger                        the append-only file beside the database: what producers committed, what bodies did
    work, tasks, producer         the workload, each piece with what must come of it
    servers, disk                 private databases and brokers, asked from outside the app
    world, members                a proxy per host and server, the processes
    faults/                       the registry of faults, and the faults, each of them real
    campaign, liveness            processes up, faults by the seed, a calm tail, the wait for what is still open
    checker                       the verdict, promise by promise, from business tables and the ledger
    report, __main__              words, JSON, exit code
    recovery, scenarios           one fault each, and how long until the work is done again:
                                  ``python -m qa.chaos.recovery``

The seed decides which faults come in which order, and what the producers ask for; how the processes interleave is
theirs. So a violation leaves its evidence in ``var/chaos``: rows, events, ledger lines, faults, the processes' logs.
"""
