"""What follows a job: callbacks, chains, groups, errbacks, and the messages of Celery's canvas that start them.

Enters: the end of a run, or a call of a group. Leaves: rows in that transaction, of reliable tasks and of others.
Never here: a word to the broker, a change of ``status`` past lifecycle/, or a job that is lost for an error of ours.
Read unit.py first (what becomes a row, and when), then capture.py (how Celery's calls get there).
"""
