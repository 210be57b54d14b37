"""Every undocumented name of Celery, Django and their kin that this package uses, each behind a function that says why.

Enters: an object of a library. Leaves: what its documented interface does not give.
Never here: a rule about jobs, or an import of what is not installed. Nothing outside this folder uses such a name.
Read register.py first: how a name is declared, and how it is verified when Django or a worker starts. The list of all
names is a table in docs/architecture.md.
"""
