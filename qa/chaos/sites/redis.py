from __future__ import annotations

from qa.chaos.sites.common import *
from qa.chaos.sites.common import BROKER_PORT, POSTGRESQL

DATABASES = {"default": POSTGRESQL}
CELERY_BROKER_URL = f"redis://127.0.0.1:{BROKER_PORT}/0"
CELERY_RESULT_BACKEND = f"redis://127.0.0.1:{BROKER_PORT}/1"
CELERY_BROKER_TRANSPORT_OPTIONS = {"visibility_timeout": 20}
