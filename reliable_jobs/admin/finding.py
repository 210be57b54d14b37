"""Find a job from the overview: one that the text means alone is shown at once, several are listed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import URLPattern, path
from django.utils.http import urlencode

from reliable_jobs.admin.listing import search
from reliable_jobs.admin.views import OperationViews
from reliable_jobs.models import Selection

if TYPE_CHECKING:
    _JobAdmin = OperationViews
else:
    _JobAdmin = object

#: As many digits of an id as the list shows.
DIGITS = 8


class FindView(_JobAdmin):
    """The part of JobAdmin that finds."""

    def get_urls(self) -> list[URLPattern]:
        name = f"{self.opts.app_label}_{self.opts.model_name}_find"
        return [path("find/", self.admin_site.admin_view(self.find_view), name=name), *super().get_urls()]

    def find_view(self, request: HttpRequest) -> HttpResponse:
        """``q`` is what the list's own search takes, or the first digits of an id."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        term = request.GET.get("q", "").strip()
        rows: Any = self.get_queryset(request)  # the manager's class, which Django's types do not know of here
        found = list(search(rows, rows, term).order_by().values_list("pk", flat=True)[:2]) if term else []
        if len(found) == 1:
            return HttpResponseRedirect(self._page("change", found[0]))
        if term and not found and len(term) >= DIGITS:
            try:
                beginning = Selection(id=term)
            except ValueError:
                pass  # no digits of an id
            else:
                by_id = list(beginning.narrow(rows).order_by().values_list("pk", flat=True)[:2])
                if len(by_id) == 1:
                    return HttpResponseRedirect(self._page("change", by_id[0]))
                if by_id:
                    return HttpResponseRedirect(f"{self._page('changelist')}?{urlencode({'id': term})}")
        return HttpResponseRedirect(f"{self._page('changelist')}?{urlencode({'q': term})}")
