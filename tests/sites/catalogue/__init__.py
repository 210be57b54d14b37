"""All the sites. Each differs from the base site in one thing, but for two of those that `make test` runs."""

from __future__ import annotations

from tests.sites.catalogue.brokers import BROKERS
from tests.sites.catalogue.databases import DATABASES
from tests.sites.catalogue.observability import OBSERVABILITY
from tests.sites.catalogue.pools import POOLS
from tests.sites.catalogue.tenants import TENANTS
from tests.sites.catalogue.versions import VERSIONS
from tests.sites.site import Site

BASE = Site(
    "base",
    "Python 3.13, Django 6.0, Celery 5.7, psycopg binary, a plain `DATABASES` dict, RabbitMQ, prefork",
    kind="base",
)

SITES: list[Site] = [BASE, *VERSIONS, *DATABASES, *TENANTS, *BROKERS, *POOLS, *OBSERVABILITY]

#: Those that differ most; `make test` runs them.
FIVE = ["base", "oldest-threads", "sqlite", "mariadb", "redis-gevent"]
