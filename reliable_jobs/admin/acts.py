"""Acts on all jobs that a filter selects: the page that asks, and the page that shows how far an act is.

The sweep loop carries an act out (sweep/acts.py); the answer to the POST does its first steps, so that a small one is
done when its page comes.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import TYPE_CHECKING, Any

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.models import ADDITION, CHANGE, LogEntry
from django.core.exceptions import PermissionDenied
from django.db import connections, router
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils import translation
from django.utils.http import urlencode
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from reliable_jobs.admin.chosen import in_words
from reliable_jobs.admin.listing import PARAMETERS, known_queues
from reliable_jobs.admin.looking import LookOnly
from reliable_jobs.admin.operations import RequeueForm
from reliable_jobs.admin.views import OperationViews
from reliable_jobs.admin.wording import jobs, number, state_label
from reliable_jobs.compat.django_admin import key_in_address
from reliable_jobs.models import ActState, BulkAct, Job, Selection, Verb
from reliable_jobs.models.selection import STATES
from reliable_jobs.sweep import acts
from reliable_jobs.translatable import shown

if TYPE_CHECKING:
    from django_stubs_ext import StrPromise

    _ModelAdmin = admin.ModelAdmin[BulkAct]
    _JobAdmin = OperationViews
else:
    _ModelAdmin, _JobAdmin = admin.ModelAdmin, object

#: Jobs that the page which asks counts.
COUNTED = 100_000
#: Jobs that it names, and kinds of errors that it counts apart.
NAMED, KINDS = 10, 12
#: Seconds that the answer to a POST spends on the first steps.
FIRST_STEPS = 1.0

#: What each verb may be done to: states of the selection.
POSSIBLE = {
    Verb.REQUEUE: tuple(state for state in STATES if state != "running"),
    Verb.CANCEL: ("waiting", "retrying", "requeued", "parked"),
}
LABELS = {Verb.REQUEUE: _("Requeue all"), Verb.CANCEL: _("Cancel all")}


class RateForm(forms.Form):
    rate = forms.FloatField(
        required=False,
        min_value=0.001,
        max_value=1_000_000,
        label=_("Jobs a second, at most"),
        help_text=_("Leave it empty for no limit."),
        widget=forms.NumberInput(attrs={"step": "any", "class": "vTextField"}),
    )


class RequeueAllForm(RequeueForm, RateForm):
    pass


@dataclasses.dataclass(frozen=True)
class Preview:
    """What an act would be done to."""

    count: int
    #: There are more than were counted.
    more: bool
    #: By class of error, the most frequent ones first.
    errors: list[tuple[str, int]]
    sample: list[Job]

    @classmethod
    def of(cls, selection: Selection, using: str) -> Preview:
        """Three queries, whose cost is bounded by COUNTED."""
        rows = selection.rows(using)
        query = rows.values_list("error_class")[: COUNTED + 1].query
        text, values = query.get_compiler(using).as_sql()
        with connections[using].cursor() as cursor:
            cursor.execute(f"SELECT found.error_class, count(*) FROM ({text}) found GROUP BY 1", values)
            kinds = Counter({str(kind or ""): int(number) for kind, number in cursor.fetchall()})
        count = sum(kinds.values())
        ordered = rows.only("task", "status", "error_class").order_by(selection.order)
        return cls(min(count, COUNTED), count > COUNTED, kinds.most_common(KINDS), list(ordered[:NAMED]))

    @property
    def number(self) -> str:
        return gettext("over %(count)s jobs") % {"count": number(self.count)} if self.more else jobs(self.count)


def why_not(verb: str, selection: Selection) -> str:
    """Why the verb can't be done to such jobs; "" where it can."""
    states = POSSIBLE[Verb(verb)]
    if selection.state in states or selection.act:
        return ""
    values = {"act": LABELS[Verb(verb)], "states": ", ".join(state_label(state) for state in states)}
    return gettext("Choose the state first. '%(act)s' is for these: %(states)s.") % values


def offers(selection: Selection | None, may: dict[str, bool]) -> list[tuple[str, StrPromise]]:
    """The acts that a list of jobs offers: verb and label."""
    if selection is None:
        return []
    return [(verb, LABELS[verb]) for verb in Verb if may[verb] and not why_not(verb, selection)]


class ActViews(_JobAdmin):
    """The part of JobAdmin that asks for an act."""

    def get_urls(self) -> list[URLPattern]:
        name = f"{self.opts.app_label}_{self.opts.model_name}_act"
        return [path("acts/<str:verb>/", self.admin_site.admin_view(self.ask_act), name=name), *super().get_urls()]

    def ask_act(self, request: HttpRequest, verb: str) -> HttpResponse:
        """GET asks, POST begins the act."""
        if verb not in Verb or not getattr(self, f"has_{verb}_permission")(request):
            raise PermissionDenied
        # The form of the list sends its empty fields, too.
        chosen = {name: request.GET[name] for name in (*PARAMETERS, "q") if request.GET.get(name, "").strip()}
        back = f"{self._page('changelist')}?{urlencode(chosen)}"
        try:
            selection = Selection.from_dict(chosen)
            if chosen.get("q"):
                raise ValueError(
                    gettext("An act is on all that the filters choose: empty the field Find, and choose by them.")
                )
            if why := why_not(verb, selection):
                raise ValueError(why)
        except ValueError as error:
            messages.error(request, shown(error.args[0]))
            return HttpResponseRedirect(back)
        using = self.get_queryset(request).db
        form_class = RequeueAllForm if verb == Verb.REQUEUE else RateForm
        form = form_class(request.POST if request.method == "POST" else None)
        preview = Preview.of(selection, using)
        if form.is_bound and form.is_valid():
            user: Any = request.user
            act = acts.begin(
                selection,
                using,
                verb=verb,
                actor=user.get_username(),
                user_id=str(user.pk),
                queue=form.cleaned_data.get("queue", ""),
                rate=form.cleaned_data["rate"],
                expected=preview.count,
            )
            with translation.override(None):  # what is stored is English
                LogEntry.objects.log_actions(user.pk, [act], ADDITION, f"{verb}: {in_words(selection)}")
            acts.carry_on(act.pk, using, FIRST_STEPS)
            return HttpResponseRedirect(reverse("admin:reliable_jobs_bulkact_change", args=[act.pk]))
        request.current_app = self.admin_site.name
        context = {
            **self.admin_site.each_context(request),
            "title": f"{LABELS[Verb(verb)]}: {preview.number}",
            "opts": self.opts,
            "media": self.media + form.media,
            "verb": verb,
            "label": LABELS[Verb(verb)],
            "preview": preview,
            "words": in_words(selection),
            "succeeded": verb == Verb.REQUEUE and selection.state == "succeeded",
            "form": form,
            "queues": known_queues() if verb == Verb.REQUEUE else [],
            "back": back,
            # With the times that were shown: "02:00" may be another one when the button is pressed.
            "fixed": urlencode(selection.as_dict()),
        }
        return TemplateResponse(request, "admin/reliable_jobs/bulkact/ask.html", context)


@admin.register(BulkAct)
class BulkActAdmin(LookOnly, _ModelAdmin):
    """Acts on many jobs, and how far they are."""

    list_display = ("__str__", "verb", "what", "actor", "cutoff", "state", "done", "skipped")
    list_display_links = ("__str__",)
    ordering = ("-cutoff",)
    list_per_page = 50
    show_full_result_count = False
    sortable_by = ()
    actions = None

    class Media:
        css = {"all": ["reliable_jobs/admin.css"]}
        js = ["reliable_jobs/refresh.js"]

    def get_queryset(self, request: HttpRequest) -> QuerySet[BulkAct]:
        return super().get_queryset(request).using(router.db_for_write(Job))

    @admin.display(description=_("which jobs"))
    def what(self, act: BulkAct) -> str:
        try:
            return in_words(Selection.from_text(act.selection))
        except (TypeError, ValueError, AttributeError):  # of another release
            return gettext("jobs that this release can't tell")

    def get_urls(self) -> list[URLPattern]:
        own = [
            path(f"<path:object_id>/{name}/", self.admin_site.admin_view(view), name=f"reliable_jobs_bulkact_{name}")
            for name, view in (("stop", self.stop), ("undo", self.undo))
        ]
        return own + super().get_urls()

    def render_change_form(self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        act = kwargs["obj"]
        context.update(
            act=act,
            label=LABELS[Verb(act.verb)],
            words=self.what(act),
            note=shown(act.note),
            running=act.state == ActState.RUNNING,
            dealt_with=act.done + act.skipped,
            share=min(100, 100 * (act.done + act.skipped) // act.expected) if act.expected else 100,
            may=self._may(request, act),
            may_undo=act.verb == Verb.REQUEUE and act.done and self._may(request, act, Verb.CANCEL),
        )
        return super().render_change_form(request, context, *args, **kwargs)

    def stop(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """POST: take no further jobs."""
        act = self._posted(request, object_id)
        user: Any = request.user
        if acts.stop(act.pk, act._state.db or "default", actor=user.get_username()):
            LogEntry.objects.log_actions(user.pk, [act], CHANGE, "Stopped.")
            messages.success(request, gettext("It takes no further jobs. What is done stays done."))
        else:
            messages.warning(request, gettext("It had ended already."))
        return HttpResponseRedirect(reverse("admin:reliable_jobs_bulkact_change", args=[act.pk]))

    def undo(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """POST: cancel the jobs that the act has requeued and that have not started."""
        act = self._posted(request, object_id, Verb.CANCEL)
        using = act._state.db or "default"
        user: Any = request.user
        acts.stop(act.pk, using, actor=user.get_username())
        back = acts.begin(
            Selection(act=str(act.pk)), using, verb=Verb.CANCEL, actor=user.get_username(), user_id=str(user.pk)
        )
        LogEntry.objects.log_actions(user.pk, [act], CHANGE, "Undone: what has not started is cancelled.")
        acts.carry_on(back.pk, using, FIRST_STEPS)
        return HttpResponseRedirect(reverse("admin:reliable_jobs_bulkact_change", args=[back.pk]))

    def _posted(self, request: HttpRequest, object_id: str, verb: str = "") -> BulkAct:
        act = self.get_object(request, key_in_address(object_id))
        if request.method != "POST" or act is None or not self._may(request, act, verb):
            raise PermissionDenied
        return act

    def _may(self, request: HttpRequest, act: BulkAct, verb: str = "") -> bool:
        user: Any = request.user
        return self.has_view_permission(request) and bool(user.has_perm(f"reliable_jobs.{verb or act.verb}_job"))
