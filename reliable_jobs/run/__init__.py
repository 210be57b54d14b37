"""One delivery: claim the row, call the task function, settle.

Enters: a message that the worker has taken, by way of the task's ``__call__``. Leaves: the run's end in the row, and an
answer for Celery's tracer. Never here: a change of ``status`` past lifecycle/, or an acknowledgement before that write.
Read delivery.py first (``_refused`` drops copies), then execution.py, which is a good run. outcomes.py says how a
function ended otherwise, recovery.py what is done where a run was broken off. A dead
worker's job: its message returns, or, after a committed claim, lifecycle.rescue() takes it back.
"""
