"""What monitors are told: Prometheus, OpenTelemetry, Sentry.

Enters: the signals of signals.py, and what health/figures.py reads. Leaves: numbers, spans and reports, in other
libraries' hands. Never here: a write, an argument or result of a job, an error that reaches a job.

- What the database knows is asked by one view (``fleet.py``, ``views.py``): one target for the whole site.
- What only a worker knows (how often, how long) is counted by receivers of signals (``counters.py``), and each worker
  shows it on a port of its own (``port.py``). prometheus-client adds up the children of a prefork pool.
- ``opentelemetry.py`` and ``sentry.py`` add to those libraries' own Celery integrations what these can't see.
The libraries are extras: a module here imports its own when it is first used. Read fleet.py first.
"""
