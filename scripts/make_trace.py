"""Write a synthetic trace: long-tailed lengths, bursty arrivals, shared prefixes."""

import argparse
import sys
from pathlib import Path

from kairos.errors import InputError
from kairos.workload.synthetic import PRESETS, generate, write_trace


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("preset", choices=list(PRESETS))
    parser.add_argument("file", type=Path, metavar="FILE.jsonl.gz")
    parser.add_argument("--requests", type=int, default=10_000, metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    try:
        write_trace(generate(options.preset, options.requests, options.seed), options.file)
    except (InputError, OSError) as error:
        print(f"make_trace: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
