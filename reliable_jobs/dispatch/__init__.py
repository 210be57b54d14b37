"""Committed rows become messages that the broker has confirmed.

Enters: rendered messages of rows whose transaction has committed. Leaves: a receipt that says which are confirmed.
Never here: a publish before the commit, or a write to a row. Whatever fails here costs time; the sweeper comes again.
Read on_commit.py first (who publishes when), then publisher.py (the time budget and the breaker).
"""
