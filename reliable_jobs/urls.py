"""``path("jobs/", include("reliable_jobs.urls"))``: health for load balancers and monitors, metrics for Prometheus."""

from __future__ import annotations

from django.urls import path

from reliable_jobs.health import views
from reliable_jobs.telemetry.views import metrics

app_name = "reliable_jobs"
urlpatterns = [
    path("health/", views.here, name="health"),
    path("health/site/", views.site, name="health-site"),
    path("metrics/", metrics, name="metrics"),
]
