"""The command `kairos upstream-diff`: check or describe the difference to upstream SGLang."""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import kairos_patches
from kairos.command_line import CommandParser
from kairos.errors import InputError
from kairos_patches.fingerprint import MissingSymbolError, upstream_root
from kairos_patches.manifest import PATH, UPSTREAM_VERSION, Drift, build, drifts
from kairos_patches.release import (
    Change,
    ReleaseError,
    breaks,
    compare,
    document,
    find_release,
    summary,
)
from kairos_patches.review import review
from kairos_patches.series import export

REVIEW = "UPSTREAM_DIFF.md"

_DESCRIPTION = f"""\
Check or describe what Kairos changes in SGLang {UPSTREAM_VERSION}.

Kairos hooks functions of the installed SGLang and relies on others. Their source is recorded in
kairos_patches/manifest.json; a server with --kairos refuses to start where it differs.
Without an option, this command writes a review of every hook as Markdown: the change under
--kairos, the reason for the hook, and its test."""

_EPILOG = """\
examples:
  kairos upstream-diff --check         is the installed SGLang the one that Kairos was written for?
  kairos upstream-diff --out FILE      write the review to FILE
  kairos upstream-diff --update        after a reviewed upgrade of SGLang: record its source
  kairos upstream-diff --against 0.5.22
                                       what would this release break? (downloads it)
  kairos upstream-diff --against ../sglang --out changes.md
                                       the same of a checkout, with the differences in a file
  kairos upstream-diff --export kairos-series
                                       patches for a vendored SGLang: git am kairos-series/*.patch

exit status: 0 if every symbol is as recorded, 1 if one has drifted or cannot be read (--against:
if one is missing or takes other arguments), 2 for a wrong command line."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: arguments without the program's name; None takes the process's own.

    Returns:
        0 if every upstream symbol is as recorded, 1 if not, 2 for a wrong option.
    """
    try:
        args = _parser().parse_args(argv)
    except InputError as error:
        print(f"upstream-diff: {error}", file=sys.stderr)
        return 2
    symbols = kairos_patches.symbols()
    try:
        root = upstream_root()
        if args.update:
            _update(symbols, root)
        found = drifts(symbols, root)
        if args.against and not found:
            return _compare(args.against, args.out, root)
        if args.export and not found:
            return _export(args.export, root)
        if not (args.check or args.update or found):
            _write_review(args.out or _default_review(), root)
    except (MissingSymbolError, ReleaseError, OSError, ValueError) as error:
        print(f"upstream-diff: error: {error}", file=sys.stderr)
        return 1
    _summarize(symbols, found)
    return 1 if found else 0


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="kairos upstream-diff",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--check", action="store_true", help="compare, and write nothing")
    mode.add_argument(
        "--update", action="store_true", help="record the installed SGLang in manifest.json"
    )
    mode.add_argument(
        "--against",
        metavar="RELEASE",
        help="compare with another release: its version, or a folder that holds it",
    )
    mode.add_argument(
        "--export",
        type=Path,
        metavar="DIR",
        help="write Kairos as patches for a copy of SGLang's source, into a new folder",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help=f"file of the review (default: {_default_review()}), or of --against's differences",
    )
    return parser


def _default_review() -> Path:
    """The review of this checkout; a file in the current folder for an installed package."""
    checkout = Path(kairos_patches.__file__).resolve().parent.parent
    return checkout / REVIEW if (checkout / "pyproject.toml").is_file() else Path(REVIEW)


def _update(symbols: Sequence[str], root: Path) -> None:
    manifest = json.dumps(build(symbols, root), indent=2) + "\n"
    PATH.write_text(manifest, encoding="utf-8")


def _write_review(out: Path, root: Path) -> None:
    text = review(kairos_patches.HOOKS, kairos_patches.DEPENDENCIES, root)
    out.write_text(text, encoding="utf-8")
    print(f"wrote {out}")


def _compare(release: str, out: Path | None, root: Path) -> int:
    """Print what another release changes, and write the differences where they are asked for."""
    with tempfile.TemporaryDirectory() as folder:
        other = find_release(release, Path(folder))
        changes = compare(kairos_patches.HOOKS, kairos_patches.DEPENDENCIES, root, other)
    for one in changes:
        if one.change is not Change.NONE:
            print(one)
    if out is not None:
        out.write_text(document(release, changes), encoding="utf-8")
        print(f"wrote {out}")
    print(summary(release, changes))
    return 1 if breaks(changes) else 0


def _export(out: Path, root: Path) -> int:
    """Write the patches, and print how they apply."""
    for patch in export(out, root):
        print(patch)
    print(f"apply them to a checkout of SGLang {UPSTREAM_VERSION}: git am {out}/*.patch")
    return 0


def _summarize(symbols: Sequence[str], found: Sequence[Drift]) -> None:
    """Print drifts, and the counts on the last line."""
    for drift in found:
        print(f"drifted: {drift}")
    print(
        f"{len(kairos_patches.HOOKS)} hooked symbols, {len(symbols)} relied on, "
        f"{len(symbols) - len(found)} as in SGLang {UPSTREAM_VERSION}, {len(found)} drifted"
    )


if __name__ == "__main__":
    sys.exit(main())
