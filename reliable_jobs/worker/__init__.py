"""A message arrives; and the worker process around it.

Enters: Celery's bootsteps and signals. Leaves: deliveries for run/, messages that nobody can run parked as rows.
Never here: a message from elsewhere that is dropped without a row. Read bootstrap.py first: it says what is hooked in
where. parking.py keeps the messages whose task nobody knows.
"""
