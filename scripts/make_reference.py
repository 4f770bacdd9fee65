"""Write the generated parts of the reference from the code that they describe.

The documents' build calls this; alone it prints a part:
  python scripts/make_reference.py cli
"""

import argparse
import contextlib
import dataclasses
import importlib
import importlib.util
import inspect
import io
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Never

from prometheus_client import Histogram

from kairos.cli import COMMANDS
from kairos.metrics import ENGINE_METRICS
from kairos.replay.client.record import RequestRecord
from kairos.replay.run.header import RunHeader
from kairos.router.config.schema import settings_of
from kairos.router.config.settings import RouterConfig
from kairos.router.observe.metrics import RouterMetrics
from kairos.sim.config import SimConfig
from kairos.workload.synthetic import PRESETS

ROOT = Path(__file__).resolve().parent.parent
# Arguments by which a command builds its further parsers.
SUBCOMMANDS = {"router": ("key",), "simulate": ("grid",), "replay": ("report", "compare")}


class _Built(BaseException):
    """Carries a parser out of the command that built it."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        super().__init__()
        self.parser = parser


def cli() -> str:
    """Return every flag of every `kairos` command, and SGLang's additional ones."""
    parts = []
    for name, command in COMMANDS.items():
        module, _, function = command.main.partition(":")
        main = getattr(importlib.import_module(module), function)
        for words in ((), *((word,) for word in SUBCOMMANDS.get(name, ()))):
            parser = built_parser(main, words)
            title = " ".join(("kairos", name, *words))
            parts.append(_parser_text(title, parser, command.summary if not words else None))
    return "\n\n".join(parts)


def engine_flags() -> str:
    """Return the flags that Kairos adds to SGLang's servers."""
    parser = argparse.ArgumentParser(add_help=False)
    _engine_config().add_arguments(parser)
    [group] = (group for group in parser._action_groups if group.title == "kairos")
    return _flags_table(group._group_actions)


def router_config() -> str:
    """Return the sections and keys of the router's configuration file."""
    parts = []
    head = ("key", "flag", "default", "allowed", "meaning")
    for section, group in RouterConfig.groups().items():
        rows = [
            (f"`{s.name}`", f"`{s.flag}`", s.default_text, s.allowed or s.metavar or "", s.help)
            for s in settings_of(group).values()
        ]
        parts.append(f"### {section}\n\n{group.__doc__}\n\n{_table(head, rows)}")
    return "\n\n".join(parts)


def engine_metrics() -> str:
    """Return the metrics that Kairos adds to a server's `/metrics`."""
    rows = [
        (
            f"`{metric.name}{'_total' if metric.kind == 'counter' else ''}`",
            metric.kind,
            metric.help,
            f"`{'.'.join(metric.path)}`",
        )
        for metric in ENGINE_METRICS
    ]
    return _table(("metric", "kind", "meaning", "in `/server_info`"), rows)


def router_metrics() -> str:
    """Return the metrics of the router."""
    rows = []
    for metric in _declared(RouterMetrics()):
        for family in metric.describe():
            kind = family.type
            name = f"{family.name}_total" if kind == "counter" else family.name
            name = f"{name}_info" if kind == "info" else name
            labels = ", ".join(f"`{label}`" for label in metric._labelnames) or "none"
            rows.append((f"`{name}`", kind, labels, family.documentation))
    return _table(("metric", "kind", "labels", "meaning"), rows)


def router_buckets() -> str:
    """Return the bounds of the router's histograms."""
    rows = [
        (f"`{metric._name}`", ", ".join(f"{bound:g}" for bound in metric._upper_bounds[:-1]))
        for metric in _declared(RouterMetrics())
        if isinstance(metric, Histogram)
    ]
    return _table(("histogram", "upper bounds"), rows)


def presets() -> str:
    """Return the presets of synthetic traces."""
    rows = [
        (
            f"`{name}`",
            f"{preset.arrivals.rate_per_s:g}",
            f"{preset.arrivals.cv:g}",
            f"{preset.inputs.low:,} to {preset.inputs.high:,}",
            f"{preset.outputs.low:,} to {preset.outputs.high:,}",
            f"{100 * preset.sharing.continued:.0f} %",
        )
        for name, preset in PRESETS.items()
    ]
    head = ("preset", "requests/s", "variation of gaps", "prompt, tokens", "output, tokens")
    return _table((*head, "continue an earlier prompt"), rows)


def request_record() -> str:
    """Return the fields of a line of a record file."""
    return _fields_table(RequestRecord)


def simulation() -> str:
    """Return the parameters of a simulation with their defaults."""
    fields = {field.name: field for field in dataclasses.fields(SimConfig)}
    rows = []
    for name, meaning in _attributes(SimConfig):
        default = fields[name].default
        policy = default is dataclasses.MISSING
        rows.append((f"`{name}`", "the policy's" if policy else f"`{default!r}`", _prose(meaning)))
    return _table(("name", "default", "meaning"), rows)


def run_header() -> str:
    """Return the fields of the first line of a record file."""
    return _fields_table(RunHeader)


SECTIONS: dict[str, Callable[[], str]] = {
    "cli": cli,
    "engine_flags": engine_flags,
    "router_config": router_config,
    "engine_metrics": engine_metrics,
    "router_metrics": router_metrics,
    "router_buckets": router_buckets,
    "presets": presets,
    "request_record": request_record,
    "run_header": run_header,
    "simulation": simulation,
}


def built_parser(
    main: Callable[[Sequence[str]], int], words: Sequence[str]
) -> argparse.ArgumentParser:
    """Return the parser with which `main` reads the arguments behind `words`."""

    def carry_out(self: argparse.ArgumentParser, *_: object, **__: object) -> Never:
        raise _Built(self)

    original = argparse.ArgumentParser.parse_known_args
    argparse.ArgumentParser.parse_known_args = carry_out  # type: ignore[method-assign]  # restored
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            main([*words, "--help"])
    except _Built as built:
        return built.parser
    finally:
        argparse.ArgumentParser.parse_known_args = original  # type: ignore[method-assign]  # the original
    raise ValueError(f"{main.__module__}.main built no parser for {list(words)}")


def _fields_table(described: type) -> str:
    """Return the attributes that a class's docstring describes."""
    rows = [
        (", ".join(f"`{name}`" for name in names.split(", ")), _prose(meaning))
        for names, meaning in _attributes(described)
    ]
    return _table(("field", "meaning"), rows)


def _attributes(described: type) -> list[tuple[str, str]]:
    """Return names and meanings of the attributes that a class's docstring describes."""
    _, _, text = inspect.cleandoc(described.__doc__ or "").partition("Attributes:\n")
    found: list[tuple[str, str]] = []
    for line in text.splitlines():
        if match := re.match(r" {0,4}([a-z0-9_]+(?:, [a-z0-9_]+)*): (.*)", line):
            found.append((match[1], match[2]))
        elif found:
            found[-1] = (found[-1][0], f"{found[-1][1]} {line.strip()}")
    return found


def _engine_config() -> ModuleType:
    """Return the module of the engine's flags without importing sglang, which takes seconds."""
    path = ROOT / "python/sglang/srt/kairos/config.py"
    spec = importlib.util.spec_from_file_location("kairos_engine_config", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def _declared(metrics: RouterMetrics) -> list[Any]:
    """Return the metrics of a registry in the order of their declaration."""
    return list(dict.fromkeys(metrics.registry._names_to_collectors.values()))


def _parser_text(title: str, parser: argparse.ArgumentParser, summary: str | None) -> str:
    """Return a chapter: description, usage, flags by group, examples."""
    parts = [f"## {title}", _prose(summary or parser.description or "")]
    usage = parser.format_usage().replace(parser.prog, title).removeprefix("usage: ")
    parts.append(f"```\n{usage.strip()}\n```")
    for group in parser._action_groups:
        if table := _flags_table(group._group_actions):
            if group.title not in ("options", "positional arguments"):
                parts.append(f"**{group.title}**: {_prose(group.description or '')}".rstrip(": "))
            parts.append(table)
    if parser.epilog:
        parts.append(f"```\n{parser.epilog.strip()}\n```")
    return "\n\n".join(part for part in parts if part)


def _flags_table(actions: Iterable[argparse.Action]) -> str:
    rows = []
    for action in actions:
        if action.help == argparse.SUPPRESS or action.dest == "help":
            continue
        names = ", ".join(f"`{name}`" for name in action.option_strings) or f"`{action.dest}`"
        rows.append((names, _value(action), _prose(_help(action))))
    return _table(("flag", "value", "meaning"), rows) if rows else ""


def _value(action: argparse.Action) -> str:
    """Return how the value of a flag is written."""
    if action.choices is not None:
        return ", ".join(f"`{choice}`" for choice in action.choices)
    if action.nargs == 0:
        return ""
    metavar = action.metavar or (action.dest.upper() if action.option_strings else "")
    shown = f"{metavar[0]} [{metavar[1]}]" if isinstance(metavar, tuple) else metavar
    return f"`{shown}`" if shown else ""


def _help(action: argparse.Action) -> str:
    """Return a flag's help text, its default filled in."""
    values = {name: getattr(action, name) for name in ("default", "dest", "metavar", "type")}
    if isinstance(values["default"], Path) and values["default"].is_relative_to(ROOT):
        values["default"] = values["default"].relative_to(ROOT)
    return (action.help or "") % values


def _table(head: tuple[str, ...], rows: Iterable[Iterable[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("|", "\\|").strip()


def _prose(text: str) -> str:
    """Return text with what Markdown or HTML would read as markup put in code or escaped."""
    text = re.sub(
        r"(?<![`\w-])(--[a-z][\w-]+|[\w./-]+\.py|/[a-z_]+(?:/[a-z_]+)*)(?!`)", r"`\1`", text
    )
    return text.replace("<", "&lt;").replace("*", "\\*")


def main() -> int:
    """Print the parts that are named; without a name, their names."""
    if unknown := sys.argv[1:2] and [name for name in sys.argv[1:] if name not in SECTIONS]:
        print(
            f"make_reference: {unknown[0]!r} is not one of {', '.join(SECTIONS)}", file=sys.stderr
        )
        return 2
    for name in sys.argv[1:]:
        print(SECTIONS[name]())
    if not sys.argv[1:]:
        print("\n".join(SECTIONS))
    return 0


if __name__ == "__main__":
    sys.exit(main())
