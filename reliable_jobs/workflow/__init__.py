"""What follows a job: callbacks, chains, groups, errbacks, and the messages of Celery's canvas that start them.

Enters: the end of a run, or a call of a group. Leaves: rows in that transaction, of reliable tasks and of others.
Never here: a word to the broker, a change of ``status`` past lifecycle/, or a job that is lost for an error of ours.
Read unit.py first (what becomes a row, and when), then capture.py (how Celery's calls get there). followups.py writes
what comes after a job: callbacks, chain, and by errbacks.py its errbacks. A chord is a group with a body: chords.py
decides when the body starts, failing.py what fails with it; chord_backend.py only answers Celery's questions.
"""
