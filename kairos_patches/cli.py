"""The command `kairos upstream-diff`: check or describe the difference to upstream SGLang."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import kairos_patches
from kairos.command_line import CommandParser
from kairos.errors import InputError
from kairos_patches.fingerprint import MissingSymbolError, upstream_root
from kairos_patches.manifest import PATH, UPSTREAM_VERSION, Drift, build, drifts
from kairos_patches.review import review

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

exit status: 0 if every symbol is as recorded, 1 if one has drifted or cannot be read, 2 for a
wrong command line."""


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
        if not (args.check or args.update or found):
            _write_review(args.out, root)
    except (MissingSymbolError, OSError, ValueError) as error:
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
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        default=_default_review(),
        help="file of the review (default: %(default)s)",
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
