"""A call becomes a row in the caller's transaction.

Enters: a task, its arguments and Celery's options. Leaves: one row, or thousands, and a hook that publishes on commit.
Never here: a word to the broker. Read outbox.py first; render.py is how Celery writes the message that the row keeps.
"""
