"""The admin, for the benchmark ``sweep``."""

from django.apps import apps
from django.contrib import admin
from django.urls import URLResolver, path

urlpatterns: list[URLResolver] = [path("admin/", admin.site.urls)] if apps.is_installed("django.contrib.admin") else []
