"""What the verdict reads: in which trace each row was written, and which errors the library was handed."""

import json
import os

from django.conf import settings
from django.db import connection

from reliable_jobs.run import round_trips


def write(name, **values):
    with open(settings.BASE_DIR / name, "a") as file:
        file.write(json.dumps({"pid": os.getpid(), **values}) + "\n")


def note_trace(sender, instance, **kwargs):
    if sender.__module__ != "shop.models":
        return
    from shop.tracing import trace_id

    what = getattr(instance, "what", sender.__name__)
    joined = round_trips.can_join(connection)
    write("traces.jsonl", number=instance.number, what=what, trace=str(trace_id()), joined=joined)


def note_error(kind, text):
    write("errors.jsonl", kind=kind, text=text)
