"""Goes through a task function, and through the project's own functions that it calls, and gathers what is unsafe in
one transaction."""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Iterator

from reliable_jobs.adopt import rules
from reliable_jobs.adopt.rules import Rule
from reliable_jobs.adopt.signals import SENT_BY, Receivers
from reliable_jobs.adopt.source import Class, Function, FunctionNode, Sources
from reliable_jobs.adopt.types import Scope

#: Calls that are followed from the task function on: it calls (1) what calls (2) …
DEPTH = 6
#: A line with this comment is not reported.
ACCEPTED = re.compile(r"#\s*atomic:\s*ok\b")

_WRITES = ("save", "update", "create", "bulk_create", "bulk_update", "get_or_create", "update_or_create", "delete")
ENQUEUES = ("delay", "apply_async", "delay_on_commit", "apply_async_on_commit", "adelay", "aapply_async", "bulk_delay")
_DATABASE_ERRORS = re.compile(r"\b(IntegrityError|DatabaseError|DataError|OperationalError)\b")
_STATE = re.compile(r"(status|state|stage|progress)$", re.I)
_UNDER_WAY = re.compile(r"process|progress|running|started|working|importing|pending|in_?flight", re.I)
_SQL = re.compile(r"\s*(COMMIT|ROLLBACK|BEGIN|START TRANSACTION|VACUUM|CREATE INDEX CONCURRENTLY)\b", re.I)


@dataclasses.dataclass(frozen=True, order=True)
class Finding:
    path: str
    line: int
    code: str
    #: What stands there.
    what: str
    fix: str
    #: The functions on the way from the task's own.
    via: tuple[str, ...] = ()


class Scan:
    """One task function."""

    def __init__(self, sources: Sources, receivers: Receivers, depth: int = DEPTH) -> None:
        self.sources, self.receivers, self.depth = sources, receivers, depth
        self.findings: dict[tuple[str, int, str], Finding] = {}
        self._seen: set[int] = set()

    def function(self, function: Function, via: tuple[str, ...] = ()) -> None:
        if id(function.node) in self._seen:
            return
        self._seen.add(id(function.node))
        _Reader(self, function, via).read()

    def add(self, function: Function, node: ast.AST, rule: Rule, what: str, via: tuple[str, ...]) -> None:
        line = getattr(node, "lineno", 0)
        lines = function.module.lines
        if not any(ACCEPTED.search(lines[at - 1]) for at in (line, getattr(node, "end_lineno", line)) if at):
            path = str(function.module.path)
            self.findings.setdefault((path, line, rule.code), Finding(path, line, rule.code, what, rule.fix, via))


class _Reader:
    """The code of one function. Functions inside it are read where they stand, unless they wait for the commit."""

    def __init__(self, scan: Scan, function: Function, via: tuple[str, ...]) -> None:
        self.scan, self.here, self.via = scan, function, via
        self.scope = Scope(scan.sources, function)
        self.after_commit = set(self._handed_to_on_commit())

    def read(self) -> None:
        for statement in self.here.node.body:
            self._visit(statement, loop=False, guarded=False)

    def add(self, node: ast.AST, rule: Rule, what: str) -> None:
        self.scan.add(self.here, node, rule, what, self.via)

    def _handed_to_on_commit(self) -> Iterator[str]:
        for node in ast.walk(self.here.node):
            if isinstance(node, ast.Call) and self.scope.called(node.func).endswith("on_commit"):
                for part in ast.walk(node):
                    if isinstance(part, ast.Name):
                        yield part.id

    def _visit(self, node: ast.AST, loop: bool, guarded: bool) -> None:
        """``loop``: inside a loop of this function; ``guarded``: inside an atomic block of its own."""
        if isinstance(node, FunctionNode) and node.name in self.after_commit:
            return
        if isinstance(node, ast.Call):
            self._call(node)
            if self.scope.called(node.func).endswith("on_commit"):
                return
        elif isinstance(node, ast.Try):
            self._try(node, loop)
        elif isinstance(node, (ast.With, ast.AsyncWith)) and any(map(self._is_atomic, node.items)):
            if loop and not guarded:
                self.add(node, rules.CHUNKS, "a transaction for each round of a loop")
            guarded = True
        elif isinstance(node, ast.Assign):
            self._state(node)
        caught = isinstance(node, ast.Try)
        loop = loop or isinstance(node, (ast.For, ast.While, ast.AsyncFor))
        for child in ast.iter_child_nodes(node):
            # A block that is tried is a savepoint to go back to, as docs/atomic.md wants it.
            self._visit(child, loop and not caught, guarded)

    # --- calls --------------------------------------------------------------------------------------------------------

    def _call(self, node: ast.Call) -> None:
        name = self.scope.called(node.func)
        last = name.rpartition(".")[2]
        if last in ENQUEUES:
            return
        for unnamed in self._unnamed(node.func, name, last):
            self._follow(unnamed)
        found = self.scan.sources.find(name)
        if isinstance(found, Class):
            found = self.scan.sources.method(found, "__init__")
        if found is not None:
            self._follow(found)
            return
        if last == "atomic" and any(word.arg == "durable" and _is_true(word.value) for word in node.keywords):
            self.add(node, rules.DURABLE, "atomic(durable=True)")
        elif last == "execute" and node.args and _SQL.match(_text(node.args[0])) and self._on_djangos_connection():
            self.add(node, rules.COMMIT, f"execute({_text(node.args[0]).strip()[:40]!r})")
        elif self._opens_for_writing(name, node):
            self.add(node, rules.FILE, f"{self._shown(node)} writes a file")
        elif last in ("get", "join", "join_native") and self._waits(node.func):
            self.add(node, rules.WAIT, self._shown(node))
        else:
            if name.startswith("celery.") and not name.startswith("celery.Task."):
                return
            rule = rules.rule_for(name)
            if rule is not None and not (rule is rules.FILE and self._temporary(node)):
                self.add(node, rule, self._shown(node))

    def _follow(self, found: Function) -> None:
        if len(self.via) < self.scan.depth:
            self.scan.function(found, (*self.via, found.name))

    def _unnamed(self, func: ast.expr, name: str, last: str) -> Iterator[Function]:
        """What is called without being named: receivers of signals, the method of one of several classes."""
        if last in ("send", "send_robust"):
            yield from self.scan.receivers.of(name.rpartition(".")[0])
        model = self.scope.model_of(func) if last in SENT_BY else None
        if model is not None:
            yield from self.scan.receivers.of_model(model, last)
        if name == f"?.{last}":
            yield from self.scan.sources.methods_named(last)
        if isinstance(func, ast.Attribute) and isinstance(func.value, ast.Name):
            for holder in self.scope.several.get(func.value.id, ()):
                found = self.scan.sources.find(f"{holder}.{last}")
                if isinstance(found, Function):
                    yield found

    def _shown(self, node: ast.Call) -> str:
        return f"{ast.unparse(node.func).splitlines()[0][:80]}()"

    def _on_djangos_connection(self) -> bool:
        """A cursor is taken for Django's where the module imports Django's connections; sqlite3 has cursors too."""
        meant = (self.scope.meant("connection"), self.scope.meant("connections"))
        return any(name in ("django.db.connection", "django.db.connections") for name in meant)

    def _opens_for_writing(self, name: str, node: ast.Call) -> bool:
        if name not in ("open", "io.open", "codecs.open", "gzip.open", "pathlib.Path.open", "?.open"):
            return False
        position = 0 if name.endswith((".Path.open", "?.open")) else 1
        modes = [word.value for word in node.keywords if word.arg == "mode"] or node.args[position : position + 1]
        writes = bool(modes) and bool(re.search("[wax+]", _text(modes[0])))
        return writes and not self._temporary(node)

    def _temporary(self, node: ast.Call) -> bool:
        return any(self.scope.is_temporary(part) for part in (node.func, *node.args[:2]))

    def _is_task(self, func: ast.expr) -> bool:
        return isinstance(func, ast.Attribute) and isinstance(func.value, ast.Name) and func.value.id == "self"

    def _waits(self, func: ast.expr) -> bool:
        """``task.delay(…).get()``, or of a variable that holds such a result."""
        if not isinstance(func, ast.Attribute):
            return False
        value: ast.AST = func.value
        if isinstance(value, ast.Name):
            wanted = value.id
            for node in ast.walk(self.here.node):
                targets = node.targets if isinstance(node, ast.Assign) else ()
                if any(isinstance(target, ast.Name) and target.id == wanted for target in targets):
                    value = node.value  # type: ignore[attr-defined]
        return isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute) and value.func.attr in ENQUEUES[:2]

    def _is_atomic(self, item: ast.withitem) -> bool:
        call = item.context_expr
        return isinstance(call, ast.Call) and self.scope.called(call.func).rpartition(".")[2] in ("atomic", "fenced")

    # --- what is noted ------------------------------------------------------------------------------------------------

    def _try(self, node: ast.Try, loop: bool) -> None:
        writes = [part for statement in node.body for part in self._written(statement)]
        guarded = any(
            isinstance(part, (ast.With, ast.AsyncWith)) and any(map(self._is_atomic, part.items))
            for statement in node.body
            for part in ast.walk(statement)
        )
        for handler in node.handlers:
            self._caught(handler)
            kinds = ast.unparse(handler.type) if handler.type else "Exception"
            raises = any(isinstance(part, ast.Raise) for part in ast.walk(handler)) or any(
                isinstance(part, ast.Call) and self.scope.called(part.func).endswith(".retry")
                for part in ast.walk(handler)
            )
            notes = [part for statement in handler.body for part in self._written(statement)]
            if raises and notes:
                self.add(notes[0], rules.RECORDED, f"{self._shown(notes[0])} before an error is raised")
            broad = loop and re.search(r"\b(Exception|BaseException)\b", kinds)
            if writes and not guarded and not raises and (_DATABASE_ERRORS.search(kinds) or broad):
                self.add(handler, rules.INTEGRITY, f"except {kinds}: goes on after {self._shown(writes[0])} failed")

    def _caught(self, handler: ast.ExceptHandler) -> None:
        """Who catches a network library's error calls across the network, by whatever way."""
        kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
        for kind in kinds:
            if isinstance(kind, (ast.Name, ast.Attribute)) and rules.NETWORK.matches(self.scope.called(kind)):
                self.add(handler, rules.NETWORK, f"catches {ast.unparse(kind)}")

    def _written(self, node: ast.AST) -> list[ast.Call]:
        """Calls that look like writes of a model."""
        found = []
        for part in ast.walk(node):
            if not isinstance(part, ast.Call) or not isinstance(part.func, ast.Attribute):
                continue
            if part.func.attr not in _WRITES:
                continue
            text = ast.unparse(part.func.value)
            manager = "objects" in text or "_set" in text or "filter(" in text
            if part.func.attr == "save" or manager:
                found.append(part)
        return found

    def _state(self, node: ast.Assign) -> None:
        """``document.status = "processing"``: a page that polls would like to see it."""
        for target in node.targets:
            named = isinstance(target, ast.Attribute) and _STATE.search(target.attr)
            if named and _UNDER_WAY.search(ast.unparse(node.value)):
                self.add(node, rules.STATUS, ast.unparse(node)[:80])


def _text(node: ast.expr) -> str:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def _is_true(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is True
