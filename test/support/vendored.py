"""A copy of SGLang's source with the exported patches of Kairos."""

import os
import subprocess
from pathlib import Path

from kairos_patches.fingerprint import upstream_root
from kairos_patches.series import export


def vendor(folder: Path) -> Path:
    """Apply the patches below `folder`, and return what has to be on PYTHONPATH.

    The files that no patch changes are symbolic links to the installed package.
    """
    checkout, series = folder / "checkout", folder / "series"
    patches = export(series, upstream_root())
    package = checkout / "python/sglang"
    edited = _edited(patches)
    for file in edited:
        (package / file).parent.mkdir(parents=True, exist_ok=True)
        (package / file).write_bytes((upstream_root() / file).read_bytes())
    git = ["git", "-c", "user.name=A reader", "-c", "user.email=reader@localhost"]
    for command in (
        ["init", "--quiet"],
        ["add", "--all"],
        ["commit", "--quiet", "--message", "SGLang"],
        ["am", "--quiet", *map(str, patches)],
    ):
        subprocess.run([*git, *command], cwd=checkout, check=True, timeout=60)
    _link(package, upstream_root())
    return checkout / "python"


def _edited(patches: list[Path]) -> set[str]:
    """Files of the package that the patches change rather than add."""
    prefix = "--- a/python/sglang/"
    lines = (line for patch in patches for line in patch.read_text().splitlines())
    return {line.removeprefix(prefix) for line in lines if line.startswith(prefix)}


def _link(target: Path, source: Path) -> None:
    """Link what `target` lacks of `source`."""
    for entry in os.scandir(source):
        place = target / entry.name
        if place.is_dir() and entry.is_dir():
            _link(place, Path(entry.path))
        elif not place.exists() and entry.name != "__pycache__":
            place.symlink_to(entry.path)
