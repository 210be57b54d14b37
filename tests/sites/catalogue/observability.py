"""Sites with a library that patches Celery, Django and psycopg to report traces and errors.

Nothing leaves the machine: they report to a port on which nobody listens, or to a recorder.
"""

from __future__ import annotations

from typing import Any

from tests.sites.site import POSTGRESQL, Observed, Site

NOWHERE = "http://127.0.0.1:9"
POINT = """
class Point(models.Model):
    number = models.IntegerField()
    part = models.IntegerField()


class Order(models.Model):"""
REPLACED = (
    ("shop/models.py", "class Order(models.Model):", POINT.lstrip("\n")),
    (
        "shop/views.py",
        "            enqueue(number)\n",
        "            enqueue(number)\n            planned.enqueue(number)\n",
    ),
    ("shop/views.py", "from shop import tasks\n", "from shop import planned, tasks\n"),
    (
        "shop/tasks.py",
        "from shop.models import Entry\n",
        "from shop import planned  # noqa: F401\nfrom shop.models import Entry\n",
    ),
)

SENTRY = f"""
import sentry_sdk
from sentry_sdk.integrations.celery import CeleryIntegration
from sentry_sdk.integrations.django import DjangoIntegration
from sentry_sdk.transport import Transport


class Recorder(Transport):
    def capture_envelope(self, envelope):
        from shop.notes import note_error

        event = envelope.get_event()
        for error in event['exception']['values'] if event and 'exception' in event else ():
            note_error(error['type'], error['value'])


sentry_sdk.init(
    dsn='{NOWHERE.replace("//", "//public@")}/1',
    transport=Recorder,
    integrations=[DjangoIntegration(), CeleryIntegration(monitor_beat_tasks=True)],
    traces_sample_rate=1.0,
)
"""
SENTRY_TRACE = """
import sentry_sdk


def trace_id():
    span = sentry_sdk.get_current_span()
    return span and span.trace_id
"""

DATADOG = """
from ddtrace.trace import TraceFilter, tracer


class Recorder(TraceFilter):
    def process_trace(self, trace):
        from shop.notes import note_error

        for span in trace:
            if span.error and span.name == 'celery.run':
                note_error(span.get_tag('error.type'), span.get_tag('error.message'))
        return trace


tracer.configure(trace_processors=[Recorder()])
"""
DATADOG_TRACE = """
from ddtrace.trace import tracer


def trace_id():
    context = tracer.current_trace_context()
    return context and context.trace_id
"""
DATADOG_VARIABLES = {
    "DD_TRACE_AGENT_URL": NOWHERE,
    "DD_CELERY_DISTRIBUTED_TRACING": "true",
    "DD_INSTRUMENTATION_TELEMETRY_ENABLED": "false",
    "DD_REMOTE_CONFIGURATION_ENABLED": "false",
}

NEW_RELIC_HEADERS = """app.autodiscover_tasks()


@signals.before_task_publish.connect
def add_trace(headers, **kwargs):
    pairs = []
    newrelic.agent.insert_distributed_trace_headers(pairs)
    headers.update(pairs)
"""
NEW_RELIC_TRACE = """
import newrelic.agent


def trace_id():
    return newrelic.agent.current_trace_id()
"""
NEW_RELIC_VARIABLES = {
    "NEW_RELIC_LICENSE_KEY": "0" * 40,
    "NEW_RELIC_APP_NAME": "proj",
    "NEW_RELIC_DEVELOPER_MODE": "true",
    "NEW_RELIC_STARTUP_TIMEOUT": "2",
}

ELASTIC = f"""
INSTALLED_APPS += ['elasticapm.contrib.django']
MIDDLEWARE.insert(0, 'elasticapm.contrib.django.middleware.TracingMiddleware')
ELASTIC_APM = {{
    'SERVICE_NAME': 'proj',
    'SERVER_URL': '{NOWHERE}',
    'TRANSPORT_CLASS': 'shop.tracing.Recorder',
    'CENTRAL_CONFIG': False,
    'CLOUD_PROVIDER': 'none',
    'DEBUG': True,
}}
"""
ELASTIC_TRACE = """
import elasticapm
from elasticapm.transport.base import Transport


class Recorder(Transport):
    def queue(self, event_type, data, flush=False):
        from shop.notes import note_error

        if event_type == 'error':
            note_error(data['exception']['type'], data['exception']['message'].partition(': ')[2])


def trace_id():
    return elasticapm.get_trace_id()
"""

OPENTELEMETRY = """
from opentelemetry import trace
from opentelemetry.instrumentation.django import DjangoInstrumentor
from opentelemetry.instrumentation.psycopg import PsycopgInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult

from reliable_jobs.telemetry.opentelemetry import ReliableJobsInstrumentor


class Recorder(SpanExporter):
    def export(self, spans):
        from shop.notes import note_error

        for span in spans:
            for event in span.events if span.name.startswith('run/') else ():
                if event.name == 'exception':
                    note_error(event.attributes['exception.type'], event.attributes['exception.message'])
        return SpanExportResult.SUCCESS


trace.set_tracer_provider(TracerProvider())
trace.get_tracer_provider().add_span_processor(SimpleSpanProcessor(Recorder()))
DjangoInstrumentor().instrument()
ReliableJobsInstrumentor().instrument()  # and with it Celery's
PsycopgInstrumentor().instrument()
"""
OPENTELEMETRY_TRACE = """
from opentelemetry import trace


def trace_id():
    return trace.get_current_span().get_span_context().trace_id
"""

PROMETHEUS = """
INSTALLED_APPS += ['django_prometheus']
MIDDLEWARE.insert(0, 'django_prometheus.middleware.PrometheusBeforeMiddleware')
MIDDLEWARE.append('django_prometheus.middleware.PrometheusAfterMiddleware')
"""
SCOUT = f"""
INSTALLED_APPS.insert(0, 'scout_apm.django')
SCOUT_MONITOR = True
SCOUT_KEY = '0' * 20
SCOUT_NAME = 'proj'
SCOUT_CORE_AGENT_DOWNLOAD = SCOUT_CORE_AGENT_LAUNCH = False
SCOUT_CORE_AGENT_SOCKET_PATH = 'tcp://127.0.0.1:9'
SCOUT_ERRORS_HOST = '{NOWHERE}'
"""
SCOUT_INSTALL = "app.autodiscover_tasks()\n\nimport scout_apm.celery\n\nscout_apm.celery.install(app)\n"
NO_TRACE = "def trace_id():\n    return None\n"


def site(name: str, varies: str, package: str | tuple[str, ...], trace: str, settings: str, **more: Any) -> Site:
    packages = (package,) if isinstance(package, str) else package
    more.setdefault("observed", Observed())
    return Site(
        name,
        varies,
        "observability",
        requirements=("django>=6.0,<6.1", "celery>=5.7,<5.8", "psycopg[binary]>=3.2", *packages),
        template="template_observed",
        files={"shop/tracing.py": trace},
        replaced=REPLACED + more.pop("replaced", ()),
        settings=settings,
        orders=60,
        **more,
    )


OBSERVABILITY = [
    site(
        "sentry",
        "sentry-sdk with its integrations of Django and Celery, all traces, beat monitored",
        "sentry-sdk>=2.50",
        SENTRY_TRACE,
        SENTRY,
    ),
    site(
        "datadog",
        "`ddtrace-run` with distributed tracing of Celery",
        "ddtrace>=4",
        DATADOG_TRACE,
        DATADOG,
        launcher=("ddtrace-run",),
        variables=DATADOG_VARIABLES,
    ),
    site(
        "new-relic",
        "`newrelic-admin run-program`, in developer mode",
        "newrelic>=11",
        NEW_RELIC_TRACE,
        "",
        replaced=(
            (
                "proj/celery.py",
                "from celery import Celery\n",
                "import newrelic.agent\nfrom celery import Celery, signals\n",
            ),
            ("proj/celery.py", "app.autodiscover_tasks()\n", NEW_RELIC_HEADERS),
        ),
        observed=Observed(errors=False, bundles=False),
        launcher=("newrelic-admin", "run-program"),
        variables=NEW_RELIC_VARIABLES,
    ),
    site("elastic-apm", "elastic-apm's app for Django, which adds Celery", "elastic-apm>=6.20", ELASTIC_TRACE, ELASTIC),
    site(
        "opentelemetry",
        "OpenTelemetry's instrumentations of Django, Celery and psycopg, and ours",
        (
            "opentelemetry-sdk",
            "opentelemetry-instrumentation-celery",
            "opentelemetry-instrumentation-django",
            "opentelemetry-instrumentation-psycopg",
        ),
        OPENTELEMETRY_TRACE,
        OPENTELEMETRY,
    ),
    site(
        "django-prometheus",
        "django-prometheus with its database backend",
        "django-prometheus>=2.4",
        NO_TRACE,
        PROMETHEUS,
        databases=POSTGRESQL.replace("django.db.backends", "django_prometheus.db.backends"),
        observed=Observed(traces=False, errors=False),
    ),
    site(
        "scout",
        "scout-apm for Django and Celery, without its agent",
        "scout-apm>=3",
        NO_TRACE,
        SCOUT,
        replaced=(("proj/celery.py", "app.autodiscover_tasks()\n", SCOUT_INSTALL),),
        observed=Observed(traces=False, errors=False),
    ),
]
