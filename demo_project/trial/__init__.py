"""What `manage.py demo` does to the shop, and how it counts afterwards. Nothing here is needed to run a shop.

In the order of their use: stage, run, customers, processes, brokers, witnesses, acts, evidence, report.
``sabotage`` switches one protection of reliable_jobs off, for ``--break``.
"""
