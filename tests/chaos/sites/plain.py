from __future__ import annotations

from tests.chaos.sites.common import *  # noqa: F403
from tests.chaos.sites.common import POSTGRESQL

DATABASES = {"default": POSTGRESQL}
