"""Calls of tasks that mean something else once a call is a row of the caller's transaction."""

from __future__ import annotations

import ast
import uuid
from collections.abc import Iterator

from reliable_jobs.adopt.rules import Rule
from reliable_jobs.adopt.scan import ACCEPTED, ENQUEUES, Finding
from reliable_jobs.adopt.source import FunctionNode, Module, Sources

ASYNC = Rule("async-call", "await task.adelay(…) or task.aapply_async(…): a call writes to the database")
RAISED = Rule(
    "call-then-raise",
    "where a transaction is open (ATOMIC_REQUESTS …), the error takes the job back: "
    "apply_async(…, transactional=False) keeps it",
)
TASK_ID = Rule("task-id", "a job's id is a UUID; for a natural id use key=…")
RULES = (ASYNC, RAISED, TASK_ID)

_CALLS = tuple(name for name in ENQUEUES if name in ("delay", "apply_async"))


def calls_in(sources: Sources) -> Iterator[Finding]:
    """What is found in all of the project's modules."""
    for module in sources.mentioning(".delay(", ".apply_async("):
        for node in ast.walk(module.tree):
            if isinstance(node, ast.AsyncFunctionDef):
                # What stands in a function inside, or is handed to sync_to_async, runs elsewhere.
                yield from _found(module, ASYNC, _enqueues(node.body))
            elif isinstance(node, ast.ExceptHandler):
                raises = any(isinstance(part, ast.Raise) for statement in node.body for part in _inside(statement))
                yield from _found(module, RAISED, _enqueues(node.body) if raises else ())
            elif isinstance(node, ast.Call) and _is_enqueue(node) and _odd_id(node):
                yield from _found(module, TASK_ID, [node])


def _found(module: Module, rule: Rule, calls: Iterator[ast.Call] | tuple[()] | list[ast.Call]) -> Iterator[Finding]:
    for call in calls:
        # apply_async of a ThreadPool, delay() of something else: the class is not known.
        outlives = any(word.arg == "transactional" for word in call.keywords)
        if not ACCEPTED.search(module.lines[call.lineno - 1]) and not (rule is RAISED and outlives):
            yield Finding(str(module.path), call.lineno, rule.code, f"{ast.unparse(call.func)[:80]}()", rule.fix)


def _enqueues(body: list[ast.stmt]) -> Iterator[ast.Call]:
    for statement in body:
        for node in _inside(statement):
            if isinstance(node, ast.Call) and _is_enqueue(node):
                yield node


def _inside(node: ast.AST) -> Iterator[ast.AST]:
    """A node and what is in it, except for functions of its own."""
    if isinstance(node, (FunctionNode, ast.Lambda)):
        return
    yield node
    for child in ast.iter_child_nodes(node):
        yield from _inside(child)


def _is_enqueue(node: ast.Call) -> bool:
    return isinstance(node.func, ast.Attribute) and node.func.attr in _CALLS


def _odd_id(node: ast.Call) -> bool:
    """Whether task_id is a text that can't be a UUID."""
    for word in node.keywords:
        if word.arg == "task_id":
            if isinstance(word.value, ast.Constant) and isinstance(word.value.value, str):
                try:
                    uuid.UUID(word.value.value)
                except ValueError:
                    return True
            if isinstance(word.value, ast.JoinedStr):
                return any(isinstance(part, ast.Constant) and str(part.value).strip() for part in word.value.values)
    return False
