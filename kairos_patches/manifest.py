"""manifest.json: the fingerprint of every upstream symbol that Kairos relies on."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from kairos_patches.fingerprint import MissingSymbolError, file_sha256, locate

UPSTREAM_VERSION = "0.5.23"
PATH = Path(__file__).with_name("manifest.json")


class SymbolRecord(TypedDict):
    """The recorded source of one symbol.

    Attributes:
        file: path below upstream's package folder.
        sha256: of the symbol's source text.
    """

    file: str
    sha256: str


class Manifest(TypedDict):
    """Contents of manifest.json.

    Attributes:
        sglang: upstream's version.
        files: sha256 by file.
        symbols: record by symbol.
    """

    sglang: str
    files: dict[str, str]
    symbols: dict[str, SymbolRecord]


@dataclass(frozen=True)
class Drift:
    """One difference between the manifest and the installed upstream.

    Attributes:
        symbol: full name.
        reason: the difference.
    """

    symbol: str
    reason: str

    def __str__(self) -> str:
        return f"{self.symbol}: {self.reason}"


def build(symbols: Sequence[str], root: Path) -> Manifest:
    """Return the manifest for the upstream package in `root`.

    Raises:
        MissingSymbolError: a symbol does not exist.
    """
    sources = {symbol: locate(symbol, root) for symbol in sorted(symbols)}
    files = sorted({source.file for source in sources.values()})
    return {
        "sglang": UPSTREAM_VERSION,
        # A matching file answers for its symbols in a millisecond, without parsing.
        "files": {file: file_sha256(root, file) for file in files},
        "symbols": {
            symbol: {"file": source.file, "sha256": source.sha256}
            for symbol, source in sources.items()
        },
    }


def drifts(symbols: Sequence[str], root: Path) -> list[Drift]:
    """Return the symbols that are not as recorded in manifest.json.

    Args:
        symbols: full names.
        root: folder of the upstream package to compare with.

    Raises:
        OSError: manifest.json cannot be read.
        ValueError: manifest.json is not JSON.
    """
    manifest: Manifest = json.loads(PATH.read_text(encoding="utf-8"))
    same = {file for file, sha in manifest["files"].items() if file_sha256(root, file) == sha}
    found = []
    for symbol in symbols:
        recorded = manifest["symbols"].get(symbol)
        if recorded is None:
            reason = "not in manifest.json; run `kairos upstream-diff --update`"
            found.append(Drift(symbol, reason))
        elif recorded["file"] not in same:
            found += _compare(symbol, recorded, root)
    return found


def _compare(symbol: str, recorded: SymbolRecord, root: Path) -> list[Drift]:
    try:
        source = locate(symbol, root)
    except MissingSymbolError as error:
        return [Drift(symbol, str(error).removeprefix(f"{symbol}: "))]
    if source.sha256 == recorded["sha256"]:
        return []
    return [Drift(symbol, f"changed since SGLang {UPSTREAM_VERSION} ({source.file}:{source.line})")]
