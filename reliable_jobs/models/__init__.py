"""The tables.

Enters: nothing; the folders above read and write the rows. Leaves: querysets whose scopes repeat the condition of a
partial index. Never here: a change of ``status``, or a query that is made when a module is imported.
Read jobs.py first: ``Job`` is the row that all the rest is about. history.py has what is said of it beside that row,
workflows.py what belongs to several jobs, processes.py who works on them, statistics.py what has become of them,
acts.py what a person does to many of them. selection.py says which jobs a person means.
"""

from reliable_jobs.models.acts import ActState, BulkAct, Pause, PauseKind, Verb
from reliable_jobs.models.history import JobEvent, JobState
from reliable_jobs.models.jobs import Job, JobQuerySet
from reliable_jobs.models.processes import Process, ProcessSeen
from reliable_jobs.models.selection import Selection
from reliable_jobs.models.statistics import QueueStat, Stat, StatState
from reliable_jobs.models.workflows import CancelledWorkflow, JobGroup, SavedGroup

__all__ = [
    "ActState",
    "BulkAct",
    "CancelledWorkflow",
    "Job",
    "JobEvent",
    "JobGroup",
    "JobQuerySet",
    "JobState",
    "Pause",
    "PauseKind",
    "Process",
    "ProcessSeen",
    "QueueStat",
    "SavedGroup",
    "Selection",
    "Stat",
    "StatState",
    "Verb",
]
