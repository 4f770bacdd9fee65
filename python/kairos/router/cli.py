"""The command `kairos-router`: reads flags and file, starts the router."""

import argparse
import dataclasses
import logging
import sys
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Any

from kairos.command_line import CommandParser
from kairos.errors import InputError
from kairos.router.config.load import mapping, read_document, refuse_unknown
from kairos.router.config.schema import flag_of, knob_of, shown
from kairos.router.config.settings import RouterConfig
from kairos.router.edge.keys import hash_key, load_keys, new_key

EXAMPLES = """\
examples:
  # In front of one prefill and one decode server, 8998 being the bootstrap port of the former:
  kairos-router --prefill http://127.0.0.1:30001 8998 --decode http://127.0.0.1:30002

  # Two classes of service and a real tokenizer:
  kairos-router --prefill http://10.0.0.1:30000 8998 --decode http://10.0.0.2:30000 \\
      --slo-class interactive=500,30 --slo-class batch=30000,200 --tokenizer-path /models/m2.5

  # Reachable from elsewhere, with keys; `kairos-router key` makes one:
  kairos-router --config router.yaml --host 0.0.0.0 --keys-file keys.yaml \\
      --admin-key-file admin.keys --tls-cert cert.pem --tls-key key.pem

  # Servers behind two headless services of Kubernetes:
  kairos-router --prefill-dns http://prefill.llm.svc:30000 8998 \\
      --decode-dns http://decode.llm.svc:30000

A file given by --config has the sections below, with the flags' names, dashes as underscores;
flags win over it:
  listen: {port: 8080}
  workers:
    prefill: [[http://10.0.0.1:30000, 8998]]
    decode: [http://10.0.0.2:30000]

signals: TERM and INT drain and stop, HUP reads keys and classes again and reopens the access log
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the router, or make a key.

    Args:
        argv: without the program's name; None takes the process's own.

    Returns:
        Exit code: 0 after a drain, 1 when the router could not go on, 2 for bad input, 130 when
        interrupted while starting.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        if argv[:1] == ["key"]:
            return _key(argv[1:])
        options = _parser().parse_args(argv)
        config = config_of(options)
        if options.check:
            load_keys(config)
            print("kairos-router: the configuration is good")
            return 0
        return _run(config)
    except InputError as error:
        print(f"kairos-router: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def parse(argv: Sequence[str]) -> RouterConfig:
    """The configuration that a command line asks for.

    Raises:
        InputError: a flag, the file or a value is not allowed.
    """
    return config_of(_parser().parse_args(list(argv)))


def config_of(options: argparse.Namespace) -> RouterConfig:
    """Put file and flags together; flags win."""
    given = _read_file(options.config) if options.config else {}
    groups = {}
    for section in dataclasses.fields(RouterConfig):
        values = given.get(section.name, {})
        for field in dataclasses.fields(_group(section)):
            flag = getattr(options, field.name, None)
            if knob_of(field) and flag is not None:
                values[field.name] = flag
        groups[section.name] = _group(section)(**values)
    return RouterConfig(**groups)


def _run(config: RouterConfig) -> int:
    logging.basicConfig(
        level=config.observability.log_level.upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    from kairos.router.edge.app import serve

    return serve(config)


def _key(argv: list[str]) -> int:
    parser = CommandParser(
        prog="kairos-router key",
        description="Make an API key, and the hash of it that goes into the files of --keys-file "
        "and --admin-key-file. The key is shown once and stored nowhere.",
    )
    parser.add_argument("--stdin", action="store_true", help="hash the key on standard input")
    if parser.parse_args(argv).stdin:
        key = sys.stdin.readline().strip()
        if len(key) < 32:
            raise InputError("--stdin: a key needs at least 32 characters, random ones")
        print(hash_key(key))
        return 0
    key, hashed = new_key()
    print(f"key:  {key}\nhash: {hashed}")
    return 0


def _read_file(path: Path) -> dict[str, dict[str, Any]]:
    document = read_document(path, "--config")
    sections = {section.name: _group(section) for section in dataclasses.fields(RouterConfig)}
    refuse_unknown(document, sections, f"--config: {path}")
    read: dict[str, dict[str, Any]] = {}
    for name, values in document.items():
        where = f"--config: {path}: {name}"
        fields = {f.name: k for f in dataclasses.fields(sections[name]) if (k := knob_of(f))}
        refuse_unknown(mapping(values, where), fields, where)
        read[name] = {}
        for field, value in values.items():
            label, knob = f"{where}.{field}", fields[field]
            if knob.many and not isinstance(value, list):
                raise InputError(f"{label}: {shown(value)} is not a list")
            read[name][field] = (
                tuple(knob.read(item, label) for item in value)
                if knob.many
                else knob.read(value, label)
            )
    return read


def _group(section: "dataclasses.Field[Any]") -> Any:
    return section.default_factory  # the group's class: it can be built without arguments


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="kairos-router",
        usage="kairos-router [options] --prefill URL [BOOTSTRAP_PORT] --decode URL\n"
        "       kairos-router key [--stdin]",
        description="Route requests to disaggregated prefill and decode servers by their "
        "deadlines.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--config", type=Path, metavar="FILE", help="YAML or TOML file of settings")
    add("--check", action="store_true", help="check flags and files, then exit")
    add("--pd-disaggregation", action="store_true", help="accepted: the router does nothing else")
    for section in dataclasses.fields(RouterConfig):
        group = parser.add_argument_group(section.name, _group(section).__doc__.partition("\n")[0])
        for field in dataclasses.fields(_group(section)):
            _add_flag(group, field)
    return parser


def _add_flag(group: Any, field: "dataclasses.Field[Any]") -> None:
    knob = knob_of(field)
    if knob is None:
        return
    text = knob.help.replace("%", "%%")
    if knob.metavar is None:
        action = argparse.BooleanOptionalAction
        group.add_argument(flag_of(field.name), action=action, default=None, help=text)
        return
    if field.default not in (None, ()):
        text = f"{text} (default {default_text(field.default)})"
    group.add_argument(
        flag_of(field.name),
        action="append" if knob.many else "store",
        nargs="+" if knob.words == "+" else None,
        metavar=tuple(knob.metavar.split(" ")) if knob.words == "+" else knob.metavar,
        help=text,
    )


def default_text(value: object) -> str:
    """A default as help texts and documents show it."""
    if isinstance(value, Enum):
        return str(value.value)
    return f"{value:.10g}" if isinstance(value, float) else str(value)
