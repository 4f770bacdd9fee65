"""Another SGLang release, and what it would change for Kairos."""

import difflib
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from kairos_patches.fingerprint import MissingSymbolError, Source, locate
from kairos_patches.hook import Hook, UpstreamDependency
from kairos_patches.manifest import UPSTREAM_VERSION


class ReleaseError(Exception):
    """A release cannot be had."""


class Change(Enum):
    """What a release does to a symbol, the worst first."""

    MISSING = "missing"
    ARGUMENTS = "other arguments"
    BODY = "changed"
    NONE = "identical"


@dataclass(frozen=True, slots=True)
class SymbolChange:
    """One symbol in another release.

    Attributes:
        symbol: full name.
        hooked: whether Kairos hooks it; it only relies on it otherwise.
        why: what Kairos does with it.
        change: from the recorded release to the other one.
        place: file and line in the other release, or the reason why there is none.
        diff: lines of a unified diff of its source.
    """

    symbol: str
    hooked: bool
    why: str
    change: Change
    place: str
    diff: tuple[str, ...] = ()

    def __str__(self) -> str:
        use = "hooked" if self.hooked else "relied on"
        return f"{self.change.value:15}  {use:9}  {self.symbol}\n{'':28}{self.place}; {self.why}"


def find_release(release: str, folder: Path) -> Path:
    """Return the `sglang` package of a release.

    Args:
        release: a version on the package index, or a folder that holds the package or a checkout.
        folder: where a download is unpacked.

    Raises:
        ReleaseError: it is no such folder, and the package index has no such version.
    """
    for path in (Path(release), Path(release, "sglang"), Path(release, "python", "sglang")):
        if (path / "srt").is_dir():
            return path
    if Path(release).is_dir():
        raise ReleaseError(f"{release}: no sglang package; it is expected there or in python/")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    wheel = ["download", "--quiet", "--no-deps", "--only-binary", ":all:", "--dest", str(folder)]
    done = subprocess.run(
        [*pip, *wheel, f"sglang=={release}"], capture_output=True, text=True, check=False
    )
    found = next(folder.glob("sglang-*.whl"), None)
    if done.returncode or found is None:
        reason = (done.stderr.strip().splitlines() or ["pip wrote nothing"])[-1]
        raise ReleaseError(f"cannot download sglang {release}: {reason}")
    with zipfile.ZipFile(found) as archive:
        names = [name for name in archive.namelist() if name.endswith(".py")]
        archive.extractall(folder, names)
    return folder / "sglang"


def compare(
    hooks: Sequence[Hook], dependencies: Sequence[UpstreamDependency], recorded: Path, other: Path
) -> list[SymbolChange]:
    """Return every symbol of Kairos in another release, the worst change first.

    Args:
        hooks: all hooks.
        dependencies: symbols that are used without a hook.
        recorded: the package that manifest.json records.
        other: the package of the other release.
    """
    used = [(hook.symbol, True, hook.changes) for hook in hooks]
    used += [(item.symbol, False, item.why) for item in dependencies]
    changes = [_change(*use, locate(use[0], recorded), other) for use in used]
    order = list(Change)
    return sorted(changes, key=lambda one: (order.index(one.change), not one.hooked, one.symbol))


def breaks(changes: Sequence[SymbolChange]) -> bool:
    """Return whether a symbol is missing or takes other arguments."""
    return any(one.change in (Change.MISSING, Change.ARGUMENTS) for one in changes)


def summary(release: str, changes: Sequence[SymbolChange]) -> str:
    """Return the counts in one line."""
    counts = Counter(one.change for one in changes)
    parts = [f"{counts[change]} {change.value}" for change in reversed(Change)]
    return f"of {len(changes)} symbols in SGLang {UPSTREAM_VERSION}, {release} has " + ", ".join(
        parts
    )


def document(release: str, changes: Sequence[SymbolChange]) -> str:
    """Return the changes with their diffs as Markdown."""
    lines = [f"# {release} for Kairos", "", summary(release, changes).capitalize() + "."]
    for one in changes:
        if one.change is not Change.NONE:
            use = "Hooked" if one.hooked else "Relied on"
            lines += ["", f"## `{one.symbol}`", ""]
            lines += [f"- {use}: {one.why}", f"- {one.change.value.capitalize()}: {one.place}"]
        if one.diff:
            lines += ["", "```diff", *one.diff, "```"]
    return "\n".join([*lines, ""])


def _change(symbol: str, hooked: bool, why: str, old: Source, other: Path) -> SymbolChange:
    try:
        new = locate(symbol, other)
    except MissingSymbolError as error:
        reason = str(error).removeprefix(f"{symbol}: ")
        return SymbolChange(symbol, hooked, why, Change.MISSING, reason)
    place = f"{new.file}:{new.line}"
    if new.text == old.text:
        return SymbolChange(symbol, hooked, why, Change.NONE, place)
    change = Change.BODY if new.arguments == old.arguments else Change.ARGUMENTS
    diff = difflib.unified_diff(
        old.text.splitlines(), new.text.splitlines(), UPSTREAM_VERSION, "other", lineterm=""
    )
    return SymbolChange(symbol, hooked, why, change, place, tuple(diff))
