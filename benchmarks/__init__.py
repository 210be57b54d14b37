"""What reliable_jobs costs beside what it replaces: ``python -m benchmarks [names…]``, or ``make benchmark``.

Each benchmark is one module of this package that says what is measured and how. ``harness.py`` holds what they share
(databases, queues, processes, clocks), ``rivals/`` how each contender is configured, ``project/`` the Django project
that all of them run in. Nothing here is imported by the package ``reliable_jobs``.
"""
