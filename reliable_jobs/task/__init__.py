"""What users subclass: the task, its calls and what a running function may ask for.

Enters: a call (``delay``, ``apply_async``) or a run by the worker. Leaves: a request for enqueue/, a delivery for run/.
Never here: SQL, or a word to the broker. Importing this needs no loaded apps: what needs models goes through stages.py.
Read reliable_task.py first; it is made of the classes in call.py (``apply_async``), control.py (what a running function
asks for: ``retry`` and its wait, ``snooze``), replacing.py (``replace``) and function.py (which arguments, which
transaction).
"""

from reliable_jobs.task.reliable_task import DayLongTask, ReliableTask, RetriedTask, TenHourTask

__all__ = ["DayLongTask", "ReliableTask", "RetriedTask", "TenHourTask"]
