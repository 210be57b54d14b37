"""Who may look: whoever may view jobs. Such a page's rows are not added, changed or deleted by form."""

from __future__ import annotations

from typing import Any

from django.http import HttpRequest


class LookOnly:
    """The permissions of a ModelAdmin whose rows a person only looks at. It comes before ModelAdmin among the bases."""

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        user: Any = request.user
        return bool(user.has_perm("reliable_jobs.view_job"))

    def has_module_permission(self, request: HttpRequest) -> bool:
        return self.has_view_permission(request)
