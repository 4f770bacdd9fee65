"""The command `kairos-router`: reads flags and file, starts the router."""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kairos.command_line import CommandParser
from kairos.errors import InputError
from kairos.router.config.load import mapping, read_document, refuse_unknown
from kairos.router.config.schema import SettingField, flag_of, read_values, settings_of
from kairos.router.config.settings import RouterConfig
from kairos.router.edge.keys import hash_key, new_key

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
        return _run(config, options.check)
    except InputError as error:
        for line in str(error).splitlines():
            print(f"kairos-router: {line}", file=sys.stderr)
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
    """Put file and flags together; flags win.

    Raises:
        InputError: a line for each value that is not allowed.
    """
    sections = RouterConfig.groups()
    where = f"--config: {options.config}"
    document = read_document(options.config, "--config") if options.config else {}
    refuse_unknown(document, sections, where)
    errors: list[str] = []
    values: dict[str, dict[str, Any]] = {}
    for name, group in sections.items():
        in_file = mapping(document.get(name, {}), f"{where}: {name}")
        flags = {n: v for n in settings_of(group) if (v := getattr(options, n)) is not None}

        def place(setting: str, section: str = name) -> str:
            return f"{where}: {section}.{setting}"

        values[name] = read_values(group, in_file, place, errors)
        values[name] |= read_values(group, flags, flag_of, errors)
    if errors:
        raise InputError("\n".join(errors))
    groups: dict[str, Any] = {name: group(**values[name]) for name, group in sections.items()}
    return RouterConfig(**groups)


def _run(config: RouterConfig, only_check: bool) -> int:
    logging.basicConfig(
        level=config.observability.log_level.upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    from kairos.router.edge.process import check, serve

    if not only_check:
        return serve(config)
    if note := check(config):
        print(f"kairos-router: {note}")
    print("kairos-router: the configuration is good")
    return 0


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
    add("--check", action="store_true", help="load all that a start loads, then exit")
    add("--pd-disaggregation", action="store_true", help="accepted: the router does nothing else")
    for name, group in RouterConfig.groups().items():
        section = parser.add_argument_group(name, group.__doc__)
        for setting in settings_of(group).values():
            _add_flag(section, setting)
    return parser


def _add_flag(section: argparse._ArgumentGroup, setting: SettingField) -> None:
    text = setting.help.replace("%", "%%")
    if setting.metavar is None:
        action = argparse.BooleanOptionalAction
        section.add_argument(setting.flag, action=action, default=None, help=text)
        return
    if setting.default not in (None, ()):
        text = f"{text} (default {setting.default_text})"
    words = setting.metavar.split(" ")
    section.add_argument(
        setting.flag,
        action="store" if setting.read_item is None else "append",
        nargs=None if len(words) == 1 else "+",
        metavar=setting.metavar if len(words) == 1 else tuple(words),
        help=text,
    )
