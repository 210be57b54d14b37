"""What comes back: rows that are due, overdue, lost by their run, or old.

Enters: the clock. Leaves: messages of rows that wait, rows taken back from dead runs, old rows deleted.
Never here: a task function. A round that met its limit is followed by the next at once. Read sweeper.py first.
A run whose lease is over is taken back by lifecycle/dead_runs.py, ``rescue``.
"""
