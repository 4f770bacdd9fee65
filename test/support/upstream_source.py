"""Classes of the installed SGLang, read from its source: importing a scheduler takes a GPU."""

import ast
import inspect
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from kairos_patches import symbols
from kairos_patches.fingerprint import locate, upstream_root

Function = ast.FunctionDef | ast.AsyncFunctionDef
PROPERTIES = ("property", "cached_property", "cached_property_no_lock")
ENUMS = ("Enum", "IntEnum", "StrEnum", "Flag", "IntFlag")


def copy_relied_on(folder: Path) -> Path:
    """Copy the upstream files that Kairos relies on into `folder`, and return it."""
    root = upstream_root()
    for file in {locate(symbol, root).file for symbol in symbols()}:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / file, folder / file)
    return folder


@dataclass
class UpstreamClass:
    """The members of one class and its bases.

    Attributes:
        names: full names of the class and of its upstream bases.
        attributes: names that the classes declare, or that their methods assign.
        methods: signatures by name, without the instance.
    """

    names: list[str] = field(default_factory=list)
    attributes: set[str] = field(default_factory=set)
    methods: dict[str, inspect.Signature] = field(default_factory=dict)

    def add(self, other: "UpstreamClass") -> None:
        """Take in a base; own methods go before its ones."""
        self.names += other.names
        self.attributes |= other.attributes
        self.methods = {**other.methods, **self.methods}


@cache
def upstream_class(name: str) -> UpstreamClass:
    """The class with this full name.

    Raises:
        LookupError: there is none.
    """
    module, _, class_name = name.rpartition(".")
    tree = _parsed(module)
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and node.name == class_name:
            break
    else:
        raise LookupError(f"{name} is not defined in SGLang")
    found = UpstreamClass([name])
    for member in node.body:
        _add_member(found, member)
    if class_name == "ServerArgs":
        for namespace in _input_namespaces(tree):
            found.attributes |= upstream_class(_resolve(namespace, module, tree) or "").attributes
    for base in node.bases:
        base_name = ast.unparse(base)
        if base_name in ENUMS:
            found.attributes |= {"name", "value"}
        elif full_name := _resolve(base_name, module, tree):
            found.add(upstream_class(full_name))
    return found


def _add_member(found: UpstreamClass, member: ast.stmt) -> None:
    if isinstance(member, Function):
        decorators = {ast.unparse(one).rpartition(".")[2] for one in member.decorator_list}
        if decorators & set(PROPERTIES):
            found.attributes.add(member.name)
        else:
            found.methods.setdefault(member.name, _signature(member))
        found.attributes |= set(_assigned(member))
    elif isinstance(member, ast.Assign | ast.AnnAssign):
        found.attributes |= {name for name in _targets(member) if "." not in name}


def _assigned(method: Function) -> Iterator[str]:
    """Attributes that a method assigns to its instance."""
    positional = [*method.args.posonlyargs, *method.args.args]
    if not positional:
        return
    prefix = f"{positional[0].arg}."
    for node in ast.walk(method):
        if isinstance(node, ast.Assign | ast.AnnAssign):
            for name in _targets(node):
                if name.startswith(prefix) and name.count(".") == 1:
                    yield name.removeprefix(prefix)


def _targets(node: ast.Assign | ast.AnnAssign) -> Iterator[str]:
    for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
        for part in target.elts if isinstance(target, ast.Tuple | ast.List) else [target]:
            yield ast.unparse(part)


def _signature(function: Function) -> inspect.Signature:
    args = function.args
    kinds = inspect.Parameter
    positional = [(arg.arg, kinds.POSITIONAL_ONLY) for arg in args.posonlyargs]
    positional += [(arg.arg, kinds.POSITIONAL_OR_KEYWORD) for arg in args.args]
    missing = len(positional) - len(args.defaults)
    parameters = [
        kinds(name, kind, default=kinds.empty if at < missing else None)
        for at, (name, kind) in enumerate(positional)
    ]
    if args.vararg is not None:
        parameters.append(kinds(args.vararg.arg, kinds.VAR_POSITIONAL))
    for arg, default in zip(args.kwonlyargs, args.kw_defaults, strict=True):
        value = kinds.empty if default is None else None
        parameters.append(kinds(arg.arg, kinds.KEYWORD_ONLY, default=value))
    if args.kwarg is not None:
        parameters.append(kinds(args.kwarg.arg, kinds.VAR_KEYWORD))
    is_static = any(ast.unparse(one) == "staticmethod" for one in function.decorator_list)
    return inspect.Signature(parameters if is_static else parameters[1:])


def _resolve(base: str, module: str, tree: ast.Module) -> str | None:
    """Full name of a base class; None where it is not upstream's."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and node.name == base:
            return f"{module}.{base}"
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            for alias in node.names:
                if (alias.asname or alias.name) == base and node.module.startswith("sglang."):
                    return f"{node.module}.{alias.name}"
    return None


def _input_namespaces(tree: ast.Module) -> list[str]:
    """The classes whose fields upstream collects into `ServerArgs` when it is imported."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_INPUT_NAMESPACES":
            assert isinstance(node.value, ast.List)
            return [ast.unparse(element) for element in node.value.elts]
    raise LookupError("ServerArgs is not made of _INPUT_NAMESPACES any more")


@cache
def _parsed(module: str) -> ast.Module:
    path = upstream_root().joinpath(*module.split(".")[1:])
    file = path.with_suffix(".py") if path.with_suffix(".py").is_file() else path / "__init__.py"
    if not file.is_file():
        raise LookupError(f"{module} is not a module of SGLang")
    return ast.parse(Path(file).read_text(encoding="utf-8"))
