from __future__ import annotations

from qa.chaos.sites.common import *
from qa.chaos.sites.common import POSTGRESQL, RELIABLE_JOBS

DATABASES = {"default": {**POSTGRESQL, "CONN_MAX_AGE": 0}}
RELIABLE_JOBS = {**RELIABLE_JOBS, "WORKER_CONN_MAX_AGE": 0}
