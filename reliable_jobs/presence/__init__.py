"""Who works, and who is silent.

Enters: what a worker, beat or relay says of itself. Leaves: its rows, written every PRESENCE_INTERVAL seconds; who
consumes a queue, and who was seen last. Never here: anything that a run, a sweep or a shutdown waits for.
Read beacon.py first: the thread that writes. seen.py reads.
"""

from reliable_jobs.presence.beacon import Beacon, Report
from reliable_jobs.presence.seen import Consumers, Seen, State, clock, consumers_of, processes

__all__ = ["Beacon", "Consumers", "Report", "Seen", "State", "clock", "consumers_of", "processes"]
