"""Which functions Django's signals call: a model that is saved or deleted runs code that its caller does not name."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from reliable_jobs.adopt.source import Function, Module, Sources, dotted_name

#: The signals that a call of a model's instance, manager or queryset sends.
SENT_BY = {
    "save": ("pre_save", "post_save"),
    "create": ("pre_save", "post_save"),
    "get_or_create": ("pre_save", "post_save"),
    "update_or_create": ("pre_save", "post_save"),
    "delete": ("pre_delete", "post_delete"),
}
MODEL_SIGNALS = "django.db.models.signals"


class Receivers:
    """Receivers by signal and sender, as ``@receiver(…)`` and ``signal.connect(…)`` name them."""

    def __init__(self, sources: Sources) -> None:
        self.sources = sources
        self._found: dict[str, list[tuple[str | None, str]]] | None = None

    def of(self, signal: str, sender: str | None = None) -> Iterator[Function]:
        """The receivers of a signal by its dotted name; of a model's signal those of this sender only."""
        if self._found is None:
            self._found = {}
            for module in self.sources.mentioning("receiver(", ".connect("):
                for name, of, receiver in _connections(module):
                    self._found.setdefault(self.sources.canonical(name), []).append((of, receiver))
        for of, receiver in self._found.get(self.sources.canonical(signal), ()):
            if sender is None or (of is not None and self.sources.canonical(of) == sender):
                found = self.sources.find(receiver)
                if isinstance(found, Function):
                    yield found

    def of_model(self, model: str, method: str) -> Iterator[Function]:
        for signal in SENT_BY.get(method, ()):
            yield from self.of(f"{MODEL_SIGNALS}.{signal}", model)


def _connections(module: Module) -> Iterator[tuple[str, str | None, str]]:
    """Signal, sender and receiver of each connection in a module."""
    names = {**module.names, **dict(module.imports(ast.walk(module.tree)))}

    def meant(node: ast.expr | None) -> str | None:
        dotted = dotted_name(node) if node is not None else None
        if dotted is None:
            return None
        head, _, rest = dotted.partition(".")
        known = names.get(head)
        return f"{known}.{rest}" if known and rest else known

    for node in ast.walk(module.tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            for decorator in node.decorator_list:
                if isinstance(decorator, ast.Call) and (meant(decorator.func) or "").endswith(".receiver"):
                    signals = decorator.args[0] if decorator.args else None
                    each = signals.elts if isinstance(signals, (ast.List, ast.Tuple)) else [signals]
                    for named in filter(None, map(meant, each)):
                        yield named, meant(_keyword(decorator, "sender")), f"{module.name}.{node.name}"
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "connect":
            signal, receiver = meant(node.func.value), meant(node.args[0]) if node.args else None
            if signal and receiver:
                yield signal, meant(_keyword(node, "sender")), receiver


def _keyword(call: ast.Call, name: str) -> ast.expr | None:
    return next((word.value for word in call.keywords if word.arg == name), None)
