"""The project's modules as syntax trees, and the definition behind a dotted name. Nothing is imported."""

from __future__ import annotations

import ast
import dataclasses
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

_METHOD = re.compile(r"^[ \t]+(?:async )?def (\w+)\(", re.M)
#: Classes with a method of one name, of which an unknown object may be any.
_FEW = 3
FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef


@dataclasses.dataclass(frozen=True, eq=False)
class Function:
    """A function or method of the project."""

    module: Module
    node: FunctionNode
    #: The dotted name of its class, if it is a method.
    owner: str | None = None

    @property
    def name(self) -> str:
        return f"{self.owner or self.module.name}.{self.node.name}"


@dataclasses.dataclass(frozen=True, eq=False)
class Class:
    module: Module
    node: ast.ClassDef

    @property
    def name(self) -> str:
        return f"{self.module.name}.{self.node.name}"


@dataclasses.dataclass(eq=False)
class Module:
    name: str
    path: Path
    tree: ast.Module
    lines: list[str]
    #: What a name at module level means, as a dotted name.
    names: dict[str, str] = dataclasses.field(default_factory=dict)
    functions: dict[str, FunctionNode] = dataclasses.field(default_factory=dict)
    classes: dict[str, ast.ClassDef] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        self.names.update(self.imports(_statements(self.tree.body)))
        for node in _statements(self.tree.body):
            if isinstance(node, FunctionNode):
                self.functions[node.name] = node
            elif isinstance(node, ast.ClassDef):
                self.classes[node.name] = node
            else:
                continue
            self.names[node.name] = f"{self.name}.{node.name}"

    def imports(self, nodes: Iterable[ast.AST]) -> Iterator[tuple[str, str]]:
        """The names that import statements bind, and what they mean."""
        for node in nodes:
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield (
                        alias.asname or alias.name.partition(".")[0],
                        alias.name if alias.asname else (alias.name.partition(".")[0]),
                    )
            elif isinstance(node, ast.ImportFrom):
                base = self._base(node)
                for alias in node.names:
                    yield alias.asname or alias.name, f"{base}.{alias.name}" if base else alias.name

    def function_at(self, line: int) -> Function | None:
        """The function that begins, with its decorators, at a line."""
        for node in ast.walk(self.tree):
            if isinstance(node, FunctionNode):
                first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
                if line in (first, node.lineno):
                    return Function(self, node)
        return None

    def _base(self, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        package = self.name if self.path.name == "__init__.py" else self.name.rpartition(".")[0]
        for _ in range(node.level - 1):
            package = package.rpartition(".")[0]
        return f"{package}.{node.module}" if node.module else package


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements of a module, those under ``if`` and ``try`` included."""
    for node in body:
        yield node
        if isinstance(node, (ast.If, ast.Try)):
            inner = [*node.body, *node.orelse, *getattr(node, "finalbody", [])]
            for handler in getattr(node, "handlers", []):
                inner += handler.body
            yield from _statements(inner)


class Sources:
    """The modules below some directories, each read when it is first asked for."""

    def __init__(self, roots: Iterable[Path]) -> None:
        self.roots = [Path(root) for root in roots]
        self._modules: dict[str, Module | None] = {}
        #: What attributes of the project's classes hold: see types.py.
        self.attributes: dict[tuple[str, str], str | None] = {}
        self._methods: dict[str, set[str]] | None = None
        #: What its functions return.
        self.results: dict[str, str | None] = {}
        #: Files that Python can't parse.
        self.unread: list[str] = []

    def module(self, name: str) -> Module | None:
        if name not in self._modules:
            self._modules[name] = self._read(name)
        return self._modules[name]

    def _read(self, name: str) -> Module | None:
        if not name or not all(part.isidentifier() for part in name.split(".")):
            return None
        for root in self.roots:
            place = root.joinpath(*name.split("."))
            for path in (place / "__init__.py", place.with_name(f"{place.name}.py")):
                if path.is_file():
                    try:
                        text = path.read_text(encoding="utf-8")
                        return Module(name, path, ast.parse(text), text.splitlines())
                    except (SyntaxError, ValueError):
                        self.unread.append(str(path))
                        return None
        return None

    def mentioning(self, *texts: str) -> Iterator[Module]:
        """The modules in whose text one of these stands; tests, migrations and environments left out."""
        for name, text in self._texts():
            if any(wanted in text for wanted in texts):
                module = self.module(name)
                if module is not None:
                    yield module

    def methods_named(self, name: str) -> list[Function]:
        """The methods of that name, where so few classes have one that an unknown object's is probably meant."""
        if self._methods is None:
            self._methods = {}
            for module_name, text in self._texts():
                for found in _METHOD.findall(text):
                    self._methods.setdefault(found, set()).add(module_name)
        if "_" not in name.strip("_") or not 0 < len(where := self._methods.get(name, ())) <= _FEW:
            return []
        modules = filter(None, map(self.module, where))
        classes = [Class(module, node) for module in modules for node in module.classes.values()]
        own = [
            Function(cls.module, node, cls.name)
            for cls in classes
            for node in cls.node.body
            if isinstance(node, FunctionNode) and node.name == name
        ]
        return own if len(own) <= _FEW else []

    def _texts(self) -> Iterator[tuple[str, str]]:
        for root in self.roots:
            for folder, folders, files in os.walk(root):
                place = Path(folder).relative_to(root)
                folders[:] = sorted(name for name in folders if not self._skipped(Path(folder, name)))
                for file in sorted(files):
                    if file.endswith(".py") and not file.startswith("test"):
                        text = Path(folder, file).read_text(encoding="utf-8", errors="replace")
                        yield ".".join([*place.parts, *([] if file == "__init__.py" else [file[:-3]])]), text

    @staticmethod
    def _skipped(folder: Path) -> bool:
        name = folder.name
        return (
            not name.isidentifier()
            or name.startswith("test")
            or name == "migrations"
            or ((folder / "pyvenv.cfg").exists() or name in ("node_modules", "site_packages"))
        )

    def canonical(self, dotted: str) -> str:
        """The name under which a thing is defined, for one that may be re-exported."""
        found = self.find(dotted)
        if found is not None:
            return found.name
        head, _, last = dotted.rpartition(".")
        module = self.module(head)
        target = module.names.get(last) if module is not None else None
        return self.canonical(target) if target and target != dotted else dotted

    def find(self, dotted: str, hops: int = 8) -> Function | Class | None:
        """The definition behind a dotted name, through re-exports and inherited methods."""
        parts = dotted.split(".")
        for cut in range(len(parts) - 1, 0, -1):
            module = self.module(".".join(parts[:cut]))
            if module is None:
                continue
            name, *rest = parts[cut:]
            if name in module.functions and not rest:
                return Function(module, module.functions[name])
            if name in module.classes:
                cls = Class(module, module.classes[name])
                if not rest:
                    return cls
                return self.method(cls, rest[0]) if len(rest) == 1 else None
            target = module.names.get(name)
            if target is not None and target != f"{module.name}.{name}" and hops:
                return self.find(".".join([target, *rest]), hops - 1)
            return None
        return None

    def method(self, cls: Class, name: str, hops: int = 8) -> Function | None:
        for node in cls.node.body:
            if isinstance(node, FunctionNode) and node.name == name:
                return Function(cls.module, node, cls.name)
        for base in self.bases(cls) if hops else ():
            found = self.method(base, name, hops - 1)
            if found is not None:
                return found
        return None

    def bases(self, cls: Class) -> Iterator[Class]:
        """The base classes that are the project's own."""
        for base in cls.node.bases:
            dotted = dotted_name(base)
            if dotted is None:
                continue
            head, _, rest = dotted.partition(".")
            meant = cls.module.names.get(head)
            found = self.find(f"{meant}.{rest}" if rest else meant) if meant else None
            if isinstance(found, Class) and found.node is not cls.node:
                yield found


def dotted_name(node: ast.AST) -> str | None:
    """``a.b.c`` of an expression that is only names; None for others."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        value = dotted_name(node.value)
        return None if value is None else f"{value}.{node.attr}"
    return None
