"""Celery's own integration tests, run on plain Celery and with every task reliable, and what differs between the two.

    fetch the sdist of the installed Celery → unpack its t/ below var/contract → run it once for each kind → compare

The tests are somebody else's, so they ask what we did not think of. They run in a process of their own that only
produces; a real worker process beside it runs the tasks. Nothing of what is fetched is committed. ``make contract``.
"""
