"""From the app's tasks to a report of what must not run in one transaction."""

from __future__ import annotations

import dataclasses
import inspect
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from reliable_jobs.adopt.calls import calls_in
from reliable_jobs.adopt.scan import Finding, Scan
from reliable_jobs.adopt.signals import Receivers
from reliable_jobs.adopt.source import Function, Sources
from reliable_jobs.compat.celery import function_below_autoretry

DOCUMENT = "docs/atomic.md"


@dataclasses.dataclass(frozen=True)
class TaskReport:
    """What was found in one task."""

    task: str
    path: str
    line: int
    #: "atomic", "not atomic" (adopted, or with atomic = False), "plain".
    kind: str
    findings: tuple[Finding, ...]


@dataclasses.dataclass
class Report:
    tasks: list[TaskReport] = dataclasses.field(default_factory=list)
    #: Calls of tasks that mean something else once a call is a row.
    calls: list[Finding] = dataclasses.field(default_factory=list)
    #: Tasks of installed packages, whose source is not the project's.
    foreign: list[str] = dataclasses.field(default_factory=list)
    #: Tasks of the project whose function could not be found in a file, and files that can't be parsed.
    unread: list[str] = dataclasses.field(default_factory=list)

    @property
    def suspects(self) -> list[TaskReport]:
        return [task for task in self.tasks if task.findings]

    @property
    def atomic_suspects(self) -> list[TaskReport]:
        return [task for task in self.suspects if task.kind == "atomic"]

    @property
    def fit(self) -> list[TaskReport]:
        return [task for task in self.tasks if not task.findings]


def report_on(tasks: Iterable[Any], roots: Iterable[Path] | None = None) -> Report:
    """Read the task functions of an app.

    Args:
        tasks: registered tasks.
        roots: directories of the project's packages; by default those on sys.path that hold no installed packages.
    """
    sources = Sources(project_roots() if roots is None else roots)
    receivers = Receivers(sources)
    report = Report()
    for task in sorted(tasks, key=lambda task: str(task.name)):
        if str(task.name).startswith(("celery.", "reliable_jobs.")):
            continue
        path = _file(task)
        if path is None or not any(path.is_relative_to(root) for root in sources.roots) or _installed(path):
            report.foreign.append(str(task.name))
            continue
        function = _function(sources, task)
        if function is None:
            report.unread.append(str(task.name))
            continue
        scan = Scan(sources, receivers)
        scan.function(function)
        reliable = getattr(task, "writes_outbox", False)
        report.tasks.append(
            TaskReport(
                task.name,
                str(function.module.path),
                function.node.lineno,
                "plain" if not reliable else "atomic" if task.atomic else "not atomic",
                tuple(sorted(scan.findings.values())),
            )
        )
    report.calls = sorted(set(calls_in(sources)))
    report.unread += sorted(set(sources.unread))
    return report


def project_roots() -> list[Path]:
    """The directories on sys.path from which the project's own code is imported."""
    found: list[Path] = []
    for entry in sys.path:
        path = Path(entry or ".").resolve()
        if path.is_dir() and not _installed(path) and path not in found:
            found.append(path)
    return found


def _installed(path: Path) -> bool:
    """Whether a path belongs to Python or to an installed package."""
    library = [Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    return any(part in ("site-packages", "dist-packages") for part in path.parts) or any(
        path.is_relative_to(folder) for folder in library
    )


def _run(task: Any) -> Any:
    """The task's function below the wrappers of decorators and of Celery's autoretry."""
    run = function_below_autoretry(task)
    return inspect.unwrap(getattr(run, "__func__", run))


def _file(task: Any) -> Path | None:
    try:
        found = inspect.getsourcefile(_run(task))
    except TypeError:
        return None
    return Path(found).resolve() if found else None


def _function(sources: Sources, task: Any) -> Function | None:
    run = _run(task)
    found = sources.find(f"{run.__module__}.{run.__qualname__}")
    if isinstance(found, Function):
        return found
    # Made where a decorator or a factory stands: by its line.
    module = sources.module(run.__module__)
    line = getattr(getattr(run, "__code__", None), "co_firstlineno", None)
    return module.function_at(line) if module is not None and line else None


def as_text(report: Report) -> list[str]:
    """The report's lines. Several findings of one kind in one function are one line."""
    lines: list[str] = []
    for task in report.suspects:
        lines.append(f"{task.task} ({task.kind}), {_short(task.path)}:{task.line}")
        groups: dict[tuple[str, str, tuple[str, ...]], list[Finding]] = {}
        for finding in task.findings:
            groups.setdefault((finding.code, finding.path, finding.via), []).append(finding)
        for (code, path, via), found in groups.items():
            first, *more = found
            also = f", also line {', '.join(str(finding.line) for finding in more)}" if more else ""
            way = f" (by way of {' > '.join(name.rpartition('.')[2] for name in via)})" if via else ""
            lines.append(f"    {_short(path)}:{first.line}: {code}: {first.what}{also}{way}")
            lines.append(f"        {first.fix}")
    if report.calls:
        lines.append("Calls of tasks")
    for finding in report.calls:
        lines.append(f"    {_short(finding.path)}:{finding.line}: {finding.code}: {finding.what}")
        lines.append(f"        {finding.fix}")
    return lines


def summary(report: Report) -> list[str]:
    lines = [f"{len(report.tasks)} task(s) read, {len(report.suspects)} with suspects."]
    ready = [task.task for task in report.fit if task.kind != "atomic"]
    if ready:
        lines.append(f"Nothing found in {len(ready)} that are not atomic yet: {', '.join(ready)}.")
    plain = [task.task for task in report.tasks if task.kind == "plain"]
    if plain:
        lines.append(f"Plain Celery tasks (another base class, PLAIN_TASKS, or no adoption): {', '.join(plain)}.")
    if report.foreign:
        lines.append(f"Not read, as installed packages have them: {', '.join(report.foreign)}.")
    if report.unread:
        lines.append(f"Could not be read: {', '.join(report.unread)}.")
    lines.append(f"{DOCUMENT} explains each finding. A line that is safe takes the comment  # atomic: ok")
    return lines


def _short(path: str) -> str:
    try:
        return str(Path(path).relative_to(Path.cwd()))
    except ValueError:
        return path
