"""Django: names of the admin that its pages and their addresses are made of. Imported only where there is an admin."""

from __future__ import annotations

from typing import Any

from reliable_jobs.compat.django import DJANGO


@DJANGO.undocumented(
    "admin.helpers.ACTION_CHECKBOX_NAME",
    at="django.contrib.admin.helpers:ACTION_CHECKBOX_NAME",
    rare=True,
    tests=["test_admin_operations"],
)
def field_of_chosen() -> str:
    """The form field that holds the keys of the rows to which an action applies: a page that asks first sends them
    again."""
    with DJANGO.importing():
        from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
    return ACTION_CHECKBOX_NAME


@DJANGO.undocumented(
    "admin.options.IS_POPUP_VAR",
    at="django.contrib.admin.options:IS_POPUP_VAR",
    rare=True,
    tests=["test_admin_operations"],
)
def is_popup(request: Any) -> bool:
    """Whether an admin page is shown in a window of its own, without its head."""
    with DJANGO.importing():
        from django.contrib.admin.options import IS_POPUP_VAR
    return IS_POPUP_VAR in request.GET


@DJANGO.undocumented(
    "admin.utils.unquote",
    at="django.contrib.admin.utils:unquote",
    takes=("s",),
    rare=True,
    tests=["test_admin_operations"],
)
def key_in_address(quoted: str) -> str:
    """The key of a row as it was before the admin put it into an address."""
    with DJANGO.importing():
        from django.contrib.admin.utils import unquote
    return unquote(quoted)


@DJANGO.undocumented(
    "module_loading.autodiscover_modules",
    at="django.utils.module_loading:autodiscover_modules",
    tests=["test_admin_job"],
)
def import_from_apps(name: str) -> None:
    """Import a module of each installed app that has it, as the admin finds ``admin.py``."""
    with DJANGO.importing():
        from django.utils.module_loading import autodiscover_modules
    autodiscover_modules(name)
