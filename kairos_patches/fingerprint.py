"""Fingerprints of upstream symbols, read from source files without importing them."""

import ast
import hashlib
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

_DEFINITIONS = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


class MissingSymbolError(LookupError):
    """A symbol, or the file that should define it, does not exist upstream."""


@dataclass(frozen=True)
class Source:
    """The definition of a symbol.

    Attributes:
        file: path below upstream's package folder.
        line: first line, decorators included.
        text: its source, dedented.
    """

    file: str
    line: int
    text: str

    @property
    def sha256(self) -> str:
        """Fingerprint of its source."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def arguments(self) -> str:
        """Arguments of a function, as written; empty for anything else."""
        definition = ast.parse(self.text).body[0]
        if isinstance(definition, ast.FunctionDef | ast.AsyncFunctionDef):
            return ast.unparse(definition.args)
        return ""


def upstream_root() -> Path:
    """Return the folder of the installed `sglang` package, without importing it.

    Raises:
        MissingSymbolError: sglang is not installed.
    """
    spec = find_spec("sglang")
    if spec is None or spec.origin is None:
        raise MissingSymbolError("the package sglang is not installed")
    return Path(spec.origin).parent


def file_sha256(root: Path, file: str) -> str:
    """Return the hash of one upstream file; an empty string where it does not exist."""
    path = root / file
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def locate(symbol: str, root: Path) -> Source:
    """Find the definition of a symbol.

    Args:
        symbol: dotted name.
        root: folder of the upstream package.

    Raises:
        MissingSymbolError: no such module, class or function.
    """
    parts = symbol.split(".")[1:]
    for cut in range(len(parts), 0, -1):
        path = root.joinpath(*parts[:cut]).with_suffix(".py")
        if path.is_file():
            return _definition(symbol, root, path, parts[cut:])
    raise MissingSymbolError(f"{symbol}: no such module in {root.name}")


def _definition(symbol: str, root: Path, path: Path, names: Iterable[str]) -> Source:
    text, tree = _parsed(path)
    node: ast.AST = tree
    for name in names:
        node = _child(symbol, node, name)
    assert isinstance(node, _DEFINITIONS | ast.Assign)
    decorators = [] if isinstance(node, ast.Assign) else node.decorator_list
    first = min([node.lineno, *(decorator.lineno for decorator in decorators)])
    lines = text.splitlines()[first - 1 : node.end_lineno]
    text = textwrap.dedent("\n".join(lines))
    return Source(path.relative_to(root).as_posix(), first, text)


def _child(symbol: str, node: ast.AST, name: str) -> ast.AST:
    for child in getattr(node, "body", []):
        if isinstance(child, _DEFINITIONS) and child.name == name:
            return child
        if isinstance(child, ast.Assign) and ast.unparse(child.targets[0]) == name:
            return child
    raise MissingSymbolError(f"{symbol}: {name!r} is not defined there")


@lru_cache(maxsize=32)
def _parsed(path: Path) -> tuple[str, ast.Module]:
    text = path.read_text(encoding="utf-8")
    return text, ast.parse(text)
