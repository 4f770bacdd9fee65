#!/usr/bin/env python3
"""Check or describe what Kairos changes in upstream SGLang.

upstream_diff.py            write UPSTREAM_DIFF.md, the review of every hook
upstream_diff.py --check    exit 0 only when every upstream symbol relied on is as recorded
upstream_diff.py --update   record the installed upstream in kairos_patches/manifest.json
"""

import argparse
import json
import sys
from pathlib import Path

import kairos_patches
from kairos_patches.fingerprint import MissingSymbolError, upstream_root
from kairos_patches.manifest import PATH, UPSTREAM_VERSION, build, drifts
from kairos_patches.review import review

REPOSITORY = Path(__file__).resolve().parent.parent


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--check", action="store_true", help="compare only, write nothing")
    mode.add_argument("--update", action="store_true", help="rewrite manifest.json")
    parser.add_argument(
        "--out", type=Path, default=REPOSITORY / "UPSTREAM_DIFF.md", help="where the review goes"
    )
    args = parser.parse_args()
    symbols = kairos_patches.symbols()
    try:
        root = upstream_root()
        if args.update:
            manifest = json.dumps(build(symbols, root), indent=2) + "\n"
            PATH.write_text(manifest, encoding="utf-8")
        found = drifts(symbols, root)
        if not (args.check or args.update or found):
            text = review(kairos_patches.HOOKS, kairos_patches.DEPENDENCIES, root)
            args.out.write_text(text, encoding="utf-8")
            print(f"wrote {args.out}")
    except (MissingSymbolError, OSError, ValueError) as error:
        print(f"upstream_diff: error: {error}", file=sys.stderr)
        return 1
    for drift in found:
        print(f"drifted: {drift}")
    print(
        f"{len(kairos_patches.HOOKS)} hooked symbols, {len(symbols)} relied on, "
        f"{len(symbols) - len(found)} as in SGLang {UPSTREAM_VERSION}, {len(found)} drifted"
    )
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
