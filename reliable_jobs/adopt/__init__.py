"""``reliable_jobs_check --adopt``: which task functions must not run in one transaction, read off their source.

In come the project's tasks, out go findings with file and line. Nothing is imported and nothing is run: source.py finds
the code behind a name, types.py what a variable holds as far as that is plain, rules.py which call harms what, scan.py
goes through a task function and the project's functions that it calls. Read scan.py first.
"""
