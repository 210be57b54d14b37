"""What names and expressions of one function mean, as dotted names, as far as the source says it plainly."""

from __future__ import annotations

import ast

from reliable_jobs.adopt.source import Class, Function, FunctionNode, Sources, dotted_name

#: Queryset methods that return one instance of the model, or a pair of it and a bool.
_ONE = ("get", "create", "first", "last", "get_or_create", "update_or_create", "earliest", "latest", "aget", "acreate")
_TEMPORARY = ("tempfile.",)
UNKNOWN = "?"


class Scope:
    """The names of one function."""

    def __init__(self, sources: Sources, function: Function, *, bare: bool = False) -> None:
        """``bare``: without its local variables, for an expression of a class that is being looked at."""
        self.sources, self.function = sources, function
        #: Names that the function imports itself.
        self.imported = dict(function.module.imports(ast.walk(function.node)))
        #: What a local variable holds an instance of.
        self.instances: dict[str, str] = {}
        #: What a local variable holds instances, or one of the classes, of: a queryset's model, a list of classes.
        self.querysets: dict[str, str] = {}
        self.classes: dict[str, list[str]] = {}
        #: Local variables that hold an instance of one of several classes.
        self.several: dict[str, list[str]] = {}
        #: Local names that come from tempfile.
        self.temporary: set[str] = set()
        self._arguments()
        for node in () if bare else ast.walk(function.node):
            self._bind(node)

    # --- names --------------------------------------------------------------------------------------------------------

    def meant(self, name: str) -> str | None:
        """The dotted name behind a name that is no local variable."""
        if name in self.imported:
            return self.imported[name]
        return self.function.module.names.get(name)

    def called(self, node: ast.expr) -> str:
        """The dotted name of what is called or named; "?.attr" for an attribute of something unknown."""
        if isinstance(node, ast.Name):
            instance = self.instances.get(node.id)
            return f"{instance}.__call__" if instance else self.meant(node.id) or node.id
        if not isinstance(node, ast.Attribute):
            return UNKNOWN
        holder = self.instance(node.value)
        if holder is not None:
            return f"{holder}.{node.attr}"
        dotted = dotted_name(node)
        if dotted is not None:
            head, _, rest = dotted.partition(".")
            meant = None if head in self.instances else self.meant(head)
            return (
                f"{meant}.{rest}"
                if meant
                else f"{UNKNOWN}.{'.'.join(dotted.split('.')[-2:] if rest.count('.') else [rest])}"
            )
        if isinstance(node.value, ast.Subscript) and self.called(node.value.value) == "django.db.connections":
            return f"django.db.connection.{node.attr}"
        if isinstance(node.value, ast.Call) and self.called(node.value.func) == "super":
            return self._inherited(node.attr)
        return f"{UNKNOWN}.{node.attr}"

    def _inherited(self, attribute: str) -> str:
        owner = self.sources.find(self.function.owner) if self.function.owner else None
        for base in self.sources.bases(owner) if isinstance(owner, Class) else ():
            if self.sources.method(base, attribute):
                return f"{base.name}.{attribute}"
        return f"{UNKNOWN}.{attribute}"

    # --- instances ----------------------------------------------------------------------------------------------------

    def instance(self, node: ast.expr | None) -> str | None:
        """The class of which an expression is an instance, where that is plain."""
        if isinstance(node, ast.Name):
            return self.instances.get(node.id)
        if isinstance(node, ast.Await):
            return self.instance(node.value)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
            return "pathlib.Path" if self.instance(node.left) == "pathlib.Path" else None
        if isinstance(node, ast.IfExp):
            return self.instance(node.body) or self.instance(node.orelse)
        if isinstance(node, ast.Attribute):
            holder = self.instance(node.value)
            if holder == "pathlib.Path" and node.attr == "parent":
                return holder
            return self._attribute(holder, node.attr) if holder else None
        if isinstance(node, ast.Call):
            return self._result(node)
        return None

    def _result(self, call: ast.Call) -> str | None:
        model = self._model(call)
        if model is not None:
            return model
        name = self.called(call.func)
        found = self.sources.find(name)
        if isinstance(found, Class):
            return found.name
        if isinstance(found, Function):
            return self._returned(found)
        if name.startswith("pathlib.Path.") and name.rpartition(".")[2] in (
            "resolve",
            "absolute",
            "with_suffix",
            "home",
        ):
            return "pathlib.Path"
        last = name.rpartition(".")[2]
        return name if found is None and "." in name and last[:1].isupper() and not last.isupper() else None

    def _returned(self, function: Function) -> str | None:
        """What a function of the project returns: by its annotation, else the first thing returned that is plain."""
        if function.node.returns is not None:
            return annotation(self.sources, function, function.node.returns)
        known = self.sources.results
        if function.name not in known:
            known[function.name] = None  # for one that calls itself
            scope = Scope(self.sources, function)
            returned = (node.value for node in ast.walk(function.node) if isinstance(node, ast.Return))
            known[function.name] = next(filter(None, map(scope.instance, returned)), None)
        return known[function.name]

    def _model(self, call: ast.Call) -> str | None:
        """The model of ``Model.objects….get(…)``."""
        if not isinstance(call.func, ast.Attribute) or call.func.attr not in _ONE:
            return None
        return self._queryset(call.func.value)

    def _queryset(self, node: ast.expr | None) -> str | None:
        while isinstance(node, (ast.Call, ast.Attribute, ast.Subscript, ast.Name, ast.IfExp)):
            if isinstance(node, ast.Name):
                return self.querysets.get(node.id)
            if isinstance(node, ast.IfExp):
                return self._queryset(node.body) or self._queryset(node.orelse)
            if isinstance(node, ast.Attribute) and node.attr.endswith(("objects", "_default_manager")):
                found = self.sources.find(self.called(node.value))
                return found.name if isinstance(found, Class) else None
            node = node.func if isinstance(node, ast.Call) else node.value
        return None

    def _attribute(self, holder: str, attribute: str) -> str | None:
        known = self.sources.attributes
        if (holder, attribute) not in known:
            known[holder, attribute] = None  # for one that is made of itself
            known[holder, attribute] = self._looked_up(holder, attribute)
        return known[holder, attribute]

    def _looked_up(self, holder: str, attribute: str) -> str | None:
        """What ``self.attribute`` holds: by an annotation, or by an assignment in one of the class's methods."""
        cls = self.sources.find(holder)
        if not isinstance(cls, Class):
            return None
        for statement in cls.node.body:
            if isinstance(statement, FunctionNode):
                found = self._assigned(Function(cls.module, statement, cls.name), attribute)
            elif isinstance(statement, ast.AnnAssign) and dotted_name(statement.target) == attribute:
                found = annotation(self.sources, Function(cls.module, _nothing(), cls.name), statement.annotation)
            elif isinstance(statement, ast.Assign) and attribute in map(dotted_name, statement.targets):
                found = self._field(Function(cls.module, _nothing(), cls.name), statement.value)
            else:
                continue
            if found is not None:
                return found
        return None

    def _assigned(self, method: Function, attribute: str) -> str | None:
        """The class of ``self.attribute = Class(…)`` in a method, or of ``self.attribute: Class``."""
        for node in ast.walk(method.node):
            if isinstance(node, ast.AnnAssign) and dotted_name(node.target) == f"self.{attribute}":
                return annotation(self.sources, method, node.annotation)
            if isinstance(node, ast.Assign) and f"self.{attribute}" in map(dotted_name, node.targets):
                value = node.value
                if isinstance(value, ast.Call):
                    return Scope(self.sources, method, bare=True).instance(value)
        return None

    def _field(self, where: Function, value: ast.expr) -> str | None:
        """What a model's field holds: another model's instance, or a field's own value, by the name of its class."""
        if not isinstance(value, ast.Call):
            return None
        scope = Scope(self.sources, where, bare=True)
        kind = scope.called(value.func)
        if kind.endswith(("ForeignKey", "OneToOneField")) and value.args:
            return annotation(self.sources, where, value.args[0])
        return f"django.db.models.{kind.rpartition('.')[2]}" if kind.endswith("Field") else scope.instance(value)

    # --- what binds them ----------------------------------------------------------------------------------------------

    def _arguments(self) -> None:
        arguments = self.function.node.args
        every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        for number, argument in enumerate(every):
            if number == 0 and self.function.owner and argument.arg in ("self", "cls"):
                self.instances[argument.arg] = self.function.owner
            elif argument.annotation is not None:
                held = annotation(self.sources, self.function, argument.annotation)
                if held:
                    self.instances[argument.arg] = held

    def _bind(self, node: ast.AST) -> None:
        pairs: list[tuple[ast.expr | None, ast.expr | None]] = []
        if isinstance(node, ast.Assign):
            pairs = [(target, node.value) for target in node.targets]
        elif isinstance(node, (ast.AnnAssign, ast.NamedExpr)):
            pairs = [(node.target, node.value)]
        elif isinstance(node, (ast.With, ast.AsyncWith)):
            pairs = [(item.optional_vars, item.context_expr) for item in node.items]
        elif isinstance(node, (ast.For, ast.AsyncFor)):
            model = self._queryset(node.iter)
            if model and isinstance(node.target, ast.Name):
                self.instances[node.target.id] = model
            elif isinstance(node.target, ast.Name) and (classes := self._listed(node.iter)):
                self.classes[node.target.id] = classes
        for target, value in pairs:
            if isinstance(target, ast.Tuple) and target.elts and isinstance(value, ast.Call) and self._model(value):
                target = target.elts[0]
            if not isinstance(target, ast.Name):
                continue
            if value is not None and self.is_temporary(value):
                self.temporary.add(target.id)
            made = value.func.id if isinstance(value, ast.Call) and isinstance(value.func, ast.Name) else None
            held = self.instance(value)
            if held:
                self.instances[target.id] = held
            elif model := self._queryset(value):
                self.querysets[target.id] = model
            elif made in self.classes:
                self.several[target.id] = self.classes[made]
            elif value is not None and (classes := self._listed(value)):
                self.classes[target.id] = classes

    def _listed(self, node: ast.expr) -> list[str]:
        """The project's classes in a list of classes, or in a variable that holds one."""
        if isinstance(node, ast.Name):
            return self.classes.get(node.id, [])
        if isinstance(node, ast.IfExp):
            return [*self._listed(node.body), *self._listed(node.orelse)]
        if not isinstance(node, (ast.List, ast.Tuple)):
            return []
        found = [
            self.sources.find(self.called(item)) for item in node.elts if isinstance(item, (ast.Name, ast.Attribute))
        ]
        return sorted({item.name for item in found if isinstance(item, Class)})

    def model_of(self, func: ast.expr) -> str | None:
        """The model whose instance, manager or queryset has the method that is called."""
        if not isinstance(func, ast.Attribute):
            return None
        return self.instance(func.value) or self._queryset(func.value)

    def is_temporary(self, node: ast.expr) -> bool:
        """Whether a file name comes from tempfile."""
        for part in ast.walk(node):
            if isinstance(part, ast.Name) and (
                part.id in self.temporary or (self.meant(part.id) or "").startswith(_TEMPORARY)
            ):
                return True
            if isinstance(part, ast.Attribute) and self.called(part).startswith(_TEMPORARY):
                return True
        return False


def annotation(sources: Sources, function: Function, node: ast.expr | None) -> str | None:
    """The class that an annotation names: the first one that it names at all, as in ``Document | None``."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        try:
            node = ast.parse(node.value, mode="eval").body
        except SyntaxError:
            return None
    if isinstance(node, ast.BinOp):
        return annotation(sources, function, node.left) or annotation(sources, function, node.right)
    if isinstance(node, ast.Subscript):
        outer = node.value.id if isinstance(node.value, ast.Name) else ""
        return annotation(sources, function, node.slice) if outer == "Optional" else None
    if not isinstance(node, (ast.Name, ast.Attribute)):
        return None
    head: ast.expr = node
    rest = ""
    while isinstance(head, ast.Attribute):
        rest, head = f".{head.attr}{rest}", head.value
    if not isinstance(head, ast.Name):
        return None
    meant = function.module.names.get(head.id)
    if meant is None:
        return None
    found = sources.find(meant + rest)
    return found.name if isinstance(found, Class) else (None if found else meant + rest)


def _nothing() -> FunctionNode:
    """A function that stands for the body of a class."""
    node = ast.parse("def body(): pass").body[0]
    assert isinstance(node, ast.FunctionDef)
    return node
