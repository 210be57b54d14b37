"""A site with a schema for each tenant, as django-tenants and tenant-schemas-celery document it."""

from __future__ import annotations

from tests.sites.site import Site, postgresql

MODELS = """
from django.db import models
from django_tenants.models import DomainMixin, TenantMixin


class Client(TenantMixin):
    name = models.CharField(max_length=100)
    auto_create_schema = True


class Domain(DomainMixin):
    pass
"""
CELERY = """
import os

from tenant_schemas_celery.app import CeleryApp as TenantAwareCeleryApp

os.environ.setdefault('DJANGO_SETTINGS_MODULE', 'proj.settings')

app = TenantAwareCeleryApp()
app.config_from_object('django.conf:settings', namespace='CELERY')
app.autodiscover_tasks()
"""
BASE = """
from reliable_jobs import ReliableTask
from tenant_schemas_celery.task import TenantTask


class TenantJob(TenantTask, ReliableTask):
    abstract = True
"""
SETTINGS = """
SHARED_APPS = ['django_tenants', 'tenants', *(app for app in INSTALLED_APPS if app != 'shop')]
TENANT_APPS = ['shop']
INSTALLED_APPS = SHARED_APPS + TENANT_APPS
TENANT_MODEL = 'tenants.Client'
TENANT_DOMAIN_MODEL = 'tenants.Domain'
DATABASE_ROUTERS = ['django_tenants.routers.TenantSyncRouter']
MIDDLEWARE.insert(0, 'django_tenants.middleware.main.TenantMainMiddleware')
"""
FIRST_TENANT = """
from tenants.models import Client, Domain
client = Client.objects.create(schema_name='acme', name='ACME')
Domain.objects.create(domain='localhost', tenant=client, is_primary=True)
"""

TENANTS = [
    Site(
        "django-tenants",
        "a schema for each tenant: django-tenants with tenant-schemas-celery, jobs in the shared schema",
        "databases",
        requirements=(
            "django>=6.0,<6.1",
            "celery>=5.7,<5.8",
            "psycopg[binary]>=3.2",
            "django-tenants>=3.7",
            "tenant-schemas-celery>=4",
        ),
        databases=postgresql().replace("django.db.backends.postgresql", "django_tenants.postgresql_backend"),
        settings=SETTINGS,
        files={
            "tenants/__init__.py": "",
            "tenants/models.py": MODELS,
            "proj/celery.py": CELERY,
            "shop/base.py": BASE,
        },
        replaced=(
            (
                "shop/tasks.py",
                "from reliable_jobs import ReliableTask",
                "from shop.base import TenantJob as ReliableTask",
            ),
        ),
        migrate=(("migrate_schemas", "--shared", "-v", "0"), ("shell", "-c", FIRST_TENANT)),
        schema="acme.",
    ),
]
