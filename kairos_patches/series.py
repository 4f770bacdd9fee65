"""Kairos as patches for `git am`, for those who keep a copy of SGLang's source.

The patches are written from the tables of this package and from the installed SGLang. A decorator
marks each hooked function, so the difference to upstream is one line a function.
"""

import ast
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import kairos
import kairos_patches
from kairos_patches.fingerprint import locate
from kairos_patches.hook import Hook
from kairos_patches.manifest import UPSTREAM_VERSION, build

_IMPORT = "from kairos_patches.vendored import hookable\n"
_LOADER = "srt/plugins/__init__.py"
_LOADED = "    _plugins_loaded = True\n"
_ACTIVATE = "\n    import kairos_patches\n\n    kairos_patches.activate()\n"
_PACKAGE = "python/sglang"  # in a checkout of SGLang
_SKIPPED = shutil.ignore_patterns("__pycache__")


def export(out: Path, root: Path) -> list[Path]:
    """Write the patches.

    Args:
        out: an empty or new folder.
        root: the package that manifest.json records.

    Returns:
        The files, in the order in which they apply.

    Raises:
        FileExistsError: `out` holds something.
        OSError: git is missing, or a file cannot be written.
    """
    out.mkdir(parents=True, exist_ok=True)
    if any(out.iterdir()):
        raise FileExistsError(f"{out} is not empty")
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        _git(tree, "init", "--quiet")
        symbols = kairos_patches.symbols()
        for file in {_LOADER, *(locate(symbol, root).file for symbol in symbols)}:
            target = tree / _PACKAGE / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root / file, target)
        _commit(tree, f"SGLang {UPSTREAM_VERSION}")
        _git(tree, "tag", "upstream")
        _add_packages(tree, root)
        _decorate(tree, root)
        _git(tree, "format-patch", "--quiet", "--output-directory", str(out.resolve()), "upstream")
    return sorted(out.glob("*.patch"))


def decorated(text: str, names: Sequence[str]) -> str:
    """Return a module's source with the decorator on the functions of these names.

    Args:
        text: the source.
        names: dotted, as `Class.method`.

    Raises:
        LookupError: there is no such function.
    """
    tree = ast.parse(text)
    imports = (
        node.lineno
        for node in tree.body
        if isinstance(node, ast.Import)
        or (isinstance(node, ast.ImportFrom) and node.module != "__future__")
    )
    added = {next(imports): _IMPORT}
    for name in names:
        node: ast.AST = tree
        for part in name.split("."):
            node = next(
                child
                for child in getattr(node, "body", [])
                if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
                and child.name == part
            )
        assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        added[node.lineno] = f"{' ' * node.col_offset}@hookable\n"
    lines = text.splitlines(keepends=True)
    return "".join(added.get(at, "") + line for at, line in enumerate(lines, 1))


def _add_packages(tree: Path, root: Path) -> None:
    """Commit the packages that upstream does not have."""
    library = Path(kairos.__file__).parent
    overlay = root / "srt/kairos"
    if not overlay.is_dir():  # an editable installation
        overlay = library.parent / "sglang/srt/kairos"
    patches = Path(kairos_patches.__file__).parent
    shutil.copytree(library, tree / "python/kairos", ignore=_SKIPPED)
    _commit(tree, "Kairos: the library of policies, latency models, simulator and router")
    shutil.copytree(overlay, tree / _PACKAGE / "srt/kairos", ignore=_SKIPPED)
    _commit(tree, "Kairos: what a scheduler process does under --kairos")
    shutil.copytree(patches, tree / "python/kairos_patches", ignore=_SKIPPED)
    _commit(tree, "Kairos: the hooks, their reasons and tests")


def _decorate(tree: Path, root: Path) -> None:
    """Commit the decorators, a file each, and the call that activates the hooks."""
    package = tree / _PACKAGE
    for file, hooks in _by_file(root).items():
        path = package / file
        path.write_text(decorated(path.read_text(), [hook.name for hook in hooks]))
        text = "\n\n".join(f"{hook.name}: {hook.changes}\n{hook.why}" for hook in hooks)
        _commit(tree, f"Kairos: hooks in {file}\n\n{text}")
    path = package / _LOADER
    text = path.read_text()
    assert text.count(_LOADED) == 1, f"{_LOADER} is not as in SGLang {UPSTREAM_VERSION}"
    path.write_text(text.replace(_LOADED, _LOADED + _ACTIVATE))
    # The decorators belong to the source that servers check at their start.
    manifest = json.dumps(build(kairos_patches.symbols(), package), indent=2) + "\n"
    (tree / "python/kairos_patches/manifest.json").write_text(manifest, encoding="utf-8")
    _commit(tree, "Kairos: offer --kairos in every process")


def _by_file(root: Path) -> Mapping[str, list[Hook]]:
    files: dict[str, list[Hook]] = {}
    for hook in kairos_patches.HOOKS:
        files.setdefault(locate(hook.symbol, root).file, []).append(hook)
    return files


def _commit(tree: Path, message: str) -> None:
    _git(tree, "add", "--all")
    _git(tree, "commit", "--quiet", "--message", message)


def _git(tree: Path, *args: str) -> None:
    names = ["-c", "user.name=Kairos", "-c", "user.email=kairos@localhost"]
    # The configuration of a user may ask for signatures, or change the form of patches.
    env = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    done = subprocess.run(
        ["git", *names, *args],
        cwd=tree, env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise OSError(f"git {args[0]}: {done.stderr.strip()}")
