"""One site from its folder to its verdict."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shutil
import signal
import time
import traceback
import uuid
from pathlib import Path
from typing import Any

from tests.sites import observed, verdict
from tests.sites.environments import FOLDER, NoEnvironment, environment
from tests.sites.project import CommandFailed, Process, Project
from tests.sites.servers import BROKERS, DATABASES, Broker, Database, Servers
from tests.sites.site import Site
from tests.support.private_servers import ServerMissing

READY_SECONDS = 60.0
MISSING = "not run: a server is missing"
_CHECK = re.compile(r"\((reliable_jobs\.[EW]\d+)\)")
_RECEIVED = re.compile(r"Task shop\.(?!tasks\.item\[)[\w.]+\[[\w-]+\] received")
_SHARED = re.compile(r"\b[1-9]\d* of \d+ jobs of shop\.tasks\.item")


class SiteFailed(RuntimeError):
    """The site did not come as far as a verdict on its orders."""


@dataclasses.dataclass
class Row:
    """A line of the table."""

    site: str
    kind: str
    varies: str
    verdict: str = "failed"
    lost: int | None = None
    phantom: int | None = None
    doubled: int | None = None
    unfinished: int | None = None
    healthy_but_failed: int | None = None
    messages_per_run: float | None = None
    connections: int | None = None
    slowest_request: float | None = None
    worker_exits: int = 0
    seconds: float = 0.0
    checks: list[str] = dataclasses.field(default_factory=list)
    evidence: list[str] = dataclasses.field(default_factory=list)

    @property
    def clean(self) -> bool:
        return self.verdict == "zeros" or self.verdict.startswith("refused: ")


def run(site: Site, servers: Servers, *, keep: bool = False) -> Row:
    """Make the site, let it work, break something, and judge. Never raises for what the site does."""
    row = Row(site.name, site.kind, site.varies)
    started = time.monotonic()
    folder = FOLDER / "work" / f"{site.name}-{uuid.uuid4().hex[:6]}"
    try:
        with contextlib.ExitStack() as stack:
            if not keep:
                stack.callback(shutil.rmtree, folder, ignore_errors=True)
            programs = stack.enter_context(environment(site))
            database = stack.enter_context(DATABASES[site.database](site, servers, folder))
            broker = stack.enter_context(BROKERS[site.broker](site, servers, folder))
            project = Project(site, folder, programs, {**broker.values, **database.values})
            stack.callback(project.stop)
            try:
                _Run(site, project, database, broker, row).go(stack)
            except BaseException:
                row.evidence += _last_words(project)
                raise
            if not row.clean:
                row.evidence += _last_words(project)
    except ServerMissing as error:
        row.verdict = MISSING
        row.evidence.append(str(error))
    except NoEnvironment as error:
        row.verdict = "not installed"
        row.evidence.append(str(error))
    except (CommandFailed, SiteFailed) as error:
        row.verdict = "failed"
        row.evidence.append(str(error))
    except Exception:
        row.verdict = "failed"
        row.evidence.append(traceback.format_exc())
    row.seconds = round(time.monotonic() - started, 1)
    return row


class _Run:
    def __init__(self, site: Site, project: Project, database: Database, broker: Broker, row: Row) -> None:
        self.site, self.project, self.database, self.broker, self.row = site, project, database, broker, row
        self.worker: Process | None = None
        self.faults = list(site.faults)
        self.answers: dict[int, int] = {}
        self._seen_work = 0
        self._count_again = 0.0
        self._counted = 0

    def go(self, stack: contextlib.ExitStack) -> None:
        site, project = self.site, self.project
        project.make()
        if not self._checked():
            return
        for command in site.migrate:
            project.manage(*command)
        if not self._start_worker():
            return
        if "beat" in site.extras:
            project.celery("beat", "beat", "-l", "INFO", "--pidfile=")
        if site.relay:
            project.start("relay", project.python, "manage.py", "reliable_jobs_relay")
        sql = stack.enter_context(verdict.asking(project))
        self._work(sql)
        found = verdict.judge(sql, self.answers, site.alias, site.schema)
        row = self.row
        row.lost, row.phantom, row.doubled = found.lost, found.phantom, found.doubled
        row.unfinished, row.healthy_but_failed = found.unfinished, found.healthy_but_failed
        row.evidence += [*found.evidence[:20], f"… and {len(found.evidence) - 20} more"][: len(found.evidence)]
        log = "".join(path.read_text() for path in project.folder.glob("worker*.log"))
        row.messages_per_run = round(len(_RECEIVED.findall(log)) / max(1, verdict.planned_runs(self.answers)), 2)
        wrong = self._wrong()
        if not _SHARED.search(log):
            wrong.append("no jobs have shared a message")
        if site.observed is not None:
            told = observed.judge(site.observed, project.folder, sql, self.answers)
            wrong += [f"{len(told)} things that the library was not handed"] * bool(told)
            row.evidence += told
        row.verdict = "zeros" if found.clean and not wrong else "; ".join(["NOT ZERO"] * (not found.clean) + wrong)

    def _wrong(self) -> list[str]:
        """What besides the orders is not as it should be."""
        site, row, wrong = self.site, self.row, []
        if len(self.answers) < site.orders:
            wrong.append(f"only {len(self.answers)} of {site.orders} orders were answered")
        if unplanned := {status for status in self.answers.values() if status not in (200, 409)}:
            wrong.append(f"requests were answered with {sorted(unplanned)}")
        if self.faults:
            wrong.append(f"never broken: {', '.join(self.faults)}")
        if site.named and site.named not in row.checks:
            wrong.append(f"{site.named} does not name it")
        if site.refused:
            wrong.append(f"it was not refused: {site.refused}")
        if (row.connections or 0) > site.most_connections:
            wrong.append(f"{row.connections} database connections, more than {site.most_connections}")
        if row.slowest_request is not None and row.slowest_request > site.budget:
            wrong.append(f"a request took {row.slowest_request} s")
        return wrong

    def _checked(self) -> bool:
        """Whether `manage.py check` lets the project start; what it names goes into the row."""
        refused = ""
        try:
            text = self.project.manage("check", "--database", "default")
        except CommandFailed as error:
            text = refused = str(error)
        self.row.checks = sorted(set(_CHECK.findall(text)))
        if self._refused(text):
            return False
        if refused:
            raise CommandFailed(refused)
        return True

    def _refused(self, text: str) -> bool:
        """Whether it was refused, by the check or with the words that the site expects, or by another check."""
        expected = self.site.refused
        errors = [name for name in _CHECK.findall(text) if ".E" in name]
        if expected and expected in text:
            self.row.verdict = f"refused: {expected}"
        elif errors:
            self.row.verdict = f"unexpectedly refused: {errors[0]}"
        else:
            return False
        self.row.evidence.append(text)
        return True

    def _start_worker(self) -> bool:
        site, project = self.site, self.project
        number = sum(process.name.startswith("worker") for process in project.processes)
        arguments = ["worker", "-l", "INFO", "-P", site.pool, "-n", f"{site.name}{number}@%h"]
        if site.pool != "solo":
            arguments += ["-c", str(site.concurrency)]
        self.worker = worker = project.celery(f"worker{number}", *arguments, *site.worker)
        deadline = time.monotonic() + READY_SECONDS
        while " ready." not in worker.text:
            if not worker.running:
                if self._refused(worker.text):
                    return False
                raise SiteFailed(f"the worker ended at its start with {worker.code}")
            if time.monotonic() > deadline:
                raise SiteFailed(f"the worker was not ready within {READY_SECONDS:g} s")
            time.sleep(0.1)
        return True

    def _work(self, sql: verdict.Sql) -> None:
        site, project = self.site, self.project
        deadline = time.monotonic() + site.seconds
        argv = ("produce.py", "0", str(site.orders), str(site.pause))
        producer = project.start("produce", project.python, *argv)
        look_again = 0.0
        while time.monotonic() < deadline:
            self._read(producer)
            self._count_connections(sql, producer)
            self._supervise()
            self._break(len(self.answers))
            if not producer.running and not self.faults and time.monotonic() > look_again:
                if not verdict.unfinished(sql, site.alias):
                    break
                look_again = time.monotonic() + 0.5
            time.sleep(0.1)
        if producer.running:
            raise SiteFailed(f"the producer was not through within {site.seconds:g} s")
        self._read(producer)

    def _read(self, producer: Process) -> None:
        records = [json.loads(line) for line in producer.text.splitlines() if line.startswith('{"number"')]
        self.answers = {record["number"]: record["status"] for record in records}
        self.row.slowest_request = max((record["took"] for record in records), default=None)

    def _count_connections(self, sql: verdict.Sql, producer: Process) -> None:
        """The most sessions seen in two looks in succession, without those of the producer, beat, the relay and the
        verdict. The parent process has one for a moment, to record how a child has ended."""
        if self.site.counted and self.database.sessions is not None and time.monotonic() > self._count_again:
            self._count_again = time.monotonic() + 0.3
            others = 1 + producer.running + ("beat" in self.site.extras) + self.site.relay
            count = int(sql(self.database.sessions, self.site.alias)[0][0]) - others
            self.row.connections = max(self.row.connections or 0, min(count, self._counted))
            self._counted = count

    def _supervise(self) -> None:
        """Start the worker again when it has ended, as systemd would."""
        assert self.worker is not None
        if not self.worker.running:
            self.row.worker_exits += 1
            if self.row.worker_exits > 5:
                raise SiteFailed("the worker has ended six times")
            if not self._start_worker():
                raise SiteFailed("the worker did not start again")

    def _break(self, answered: int) -> None:
        if not self.faults:
            return
        after = self.site.orders * (1 + len(self.site.faults) - len(self.faults)) // (1 + len(self.site.faults))
        if answered < after:
            return
        if self.faults[0] == "kill":
            if not self._kill():
                return
        else:
            getattr(self.broker, self.faults[0])()
        del self.faults[0]

    def _kill(self) -> bool:
        """SIGKILL to whoever has just begun with an order; in a pool without children that is the whole worker."""
        log = self.project.folder / "work.log"
        lines = log.read_text().splitlines() if log.exists() else []
        new, self._seen_work = len(lines) > self._seen_work, len(lines)
        if not new:
            return False
        pid = int(lines[-1].split()[0])
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        if self.worker is not None and pid == self.worker.pid:
            self.worker.kill()
            self.row.worker_exits -= 1  # this one was ours
        return True


def _last_words(project: Project) -> list[str]:
    words = []
    for process in project.processes:
        text = re.sub(r'\{"number".*\n', "", process.text)[-3000:]
        words.append(f"--- {process.name} ({'running' if process.running else process.code})\n{text}")
    return words


def folders() -> list[Path]:
    work = FOLDER / "work"
    return sorted(work.iterdir()) if work.exists() else []


def as_dict(row: Row) -> dict[str, Any]:
    return dataclasses.asdict(row)
