"""Committed rows become messages that the broker has confirmed.

Enters: rendered messages of rows whose transaction has committed. Leaves: what the broker has confirmed.
Never here: a publish before the commit, or a change of ``status``; on_commit.py may note ``sends``. Whatever fails here
costs time; the sweeper comes again.
Read on_commit.py first (who publishes when), then publisher.py (the time budget and the breaker). A confirm that does
not come: amqp_pipeline.py waits for it, publisher.py says so, on_commit.py writes nothing, and sweep/ finds the row
overdue. A broker of another kind is added in connection.py: ``Link``, and the timeouts in ``_within``.
"""
