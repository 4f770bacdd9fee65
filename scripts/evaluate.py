"""Tables of docs/evaluation.md: simulate traces, keep reports of replays, render both."""

import argparse
import re
import sys
from pathlib import Path

import msgspec

from kairos.errors import InputError
from kairos.latency import load_profile
from kairos.replay.report.evaluation import (
    Simulated,
    engine_markdown,
    kept,
    simulated,
    simulated_markdown,
)
from kairos.replay.run.provenance import git_commit
from kairos.workload.readers import read_trace

DOCS = Path(__file__).resolve().parents[1] / "docs"
RECORDS = DOCS / "records"
PAGE = DOCS / "evaluation.md"

EXAMPLES = """\
examples:
  # Simulate all arms on a trace (minutes) and keep the figures in docs/records:
  python scripts/evaluate.py simulate --trace conversation.jsonl.gz --name mooncake \\
    --label "Mooncake conversation"

  # Keep the report of a replay, then write the tables into docs/evaluation.md:
  python scripts/evaluate.py keep out/campaign --name mooncake-0.9
  python scripts/evaluate.py render
"""


def main(argv: list[str]) -> int:
    options = _parser().parse_args(argv)
    try:
        RECORDS.mkdir(parents=True, exist_ok=True)
        if options.command == "simulate":
            _simulate(options)
        elif options.command == "keep":
            _keep(options.folder, options.name)
        _render(PAGE)
    except (InputError, OSError) as error:
        print(f"evaluate: {error}", file=sys.stderr)
        return 2
    return 0


def _simulate(options: argparse.Namespace) -> None:
    found = simulated(
        options.label or options.name,
        read_trace(options.trace),
        load_profile(options.profile),
        requests=options.requests,
        slo_set=options.slo,
        tpot_ms=options.tpot_ms,
        git_commit=git_commit(),
        progress=lambda text: print(text, flush=True),
    )
    _write(RECORDS / f"simulated-{options.name}.json", msgspec.json.encode(found))


def _keep(folder: Path, name: str) -> None:
    try:
        report = msgspec.json.decode((folder / "report.json").read_bytes())
    except (OSError, msgspec.DecodeError) as error:
        raise InputError(f"{folder / 'report.json'}: {error}") from error
    engine_markdown(name, report)  # refuses what cannot be rendered
    _write(RECORDS / f"engine-{name}.json", msgspec.json.encode(kept(report)))


def _render(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    tables = [
        simulated_markdown(msgspec.json.decode(path.read_bytes(), type=Simulated))
        for path in _records("simulated")
    ]
    text = _between(text, "simulated", "\n".join(tables))
    tables = [
        engine_markdown(path.stem.removeprefix("engine-"), msgspec.json.decode(path.read_bytes()))
        for path in _records("engine")
    ]
    text = _between(text, "engine", "\n".join(tables) or "No record is kept yet.\n")
    page.write_text(text, encoding="utf-8")
    print(f"{page}: written")


def _records(kind: str) -> list[Path]:
    """By the number that their names begin with: 10 comes after 9."""
    found = RECORDS.glob(f"{kind}-*.json")
    return sorted(found, key=lambda path: [int(d) for d in re.findall(r"\d+", path.stem)])


def _between(text: str, name: str, tables: str) -> str:
    """`text` with `tables` between the two comments that say `name`."""
    pattern = rf"(<!-- {name}: .*? -->\n).*?(<!-- end of {name} -->)"
    replaced, count = re.subn(pattern, lambda m: f"{m[1]}\n{tables}\n{m[2]}", text, flags=re.DOTALL)
    if count != 1:
        raise InputError(f"{PAGE}: the comments around the {name} tables are missing")
    return replaced


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(msgspec.json.format(data, indent=1) + b"\n")
    print(f"{path}: written")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("simulate", help="simulate all arms on a trace, then render")
    one.add_argument("--trace", required=True, metavar="FILE")
    one.add_argument("--name", required=True, help="of the record file")
    one.add_argument("--label", help="heading (default: the name)")
    one.add_argument("--requests", type=int, default=2000, help="first so many (default 2000)")
    one.add_argument("--slo", default="L3")
    one.add_argument("--tpot-ms", type=float, default=30.0)
    one.add_argument("--profile", default="minimax-m2.5-tp4-h200")
    two = commands.add_parser("keep", help="keep the report of a replay, then render")
    two.add_argument("folder", type=Path, metavar="DIR", help="with report.json")
    two.add_argument("--name", required=True)
    commands.add_parser("render", help="write the tables into docs/evaluation.md")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
