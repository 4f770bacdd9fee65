"""Kairos' server flags, and how they reach the processes that SGLang spawns."""

import argparse
import functools
import math
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from kairos.errors import InputError
from kairos.latency import load_profile
from kairos.latency.profile import builtin_profiles
from kairos.slo import Slo, SloClasses, parse_class, tpot_ms, ttft_ms
from kairos.telemetry import is_endpoint

# Child processes decide at import time whether to install hooks, before they see any arguments,
# so the flags travel in the environment. The same variable switches Kairos on for `Engine(...)`,
# which has no command line.
ENV = "SGLANG_KAIROS"

DEFAULT_PROFILE = "minimax-m2.5-tp4-h200"


@dataclass(frozen=True, slots=True)
class KairosConfig:
    """Validated flags.

    Attributes:
        classes: the SLO classes that this server offers.
        profile: name or path of the latency profile behind predictions.
        flags: the flags of these values, in canonical spelling, for child processes.
        state_dir: folder of learned latencies between runs; None keeps nothing.
        hold: first tokens are held back until their decode slot is ready.
        telemetry: where a scheduler publishes its load for routers; None publishes nothing.
    """

    classes: SloClasses
    profile: str
    flags: tuple[str, ...]
    state_dir: str | None = None
    hold: bool = False
    telemetry: str | None = None


class _Collect(argparse._StoreAction):
    """A repeatable list option.

    It is not argparse's "extend", because SGLang's `--config` accepts a YAML list only for options
    whose action derives from the plain store action.
    """

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[object] | None,
        option_string: str | None = None,
    ) -> None:
        del parser, option_string
        collected = [*(getattr(namespace, self.dest) or []), *(values or [])]
        setattr(namespace, self.dest, collected)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the `kairos` group.

    Values stay strings here: argparse would answer a bad one with SGLang's whole usage text,
    `config_from_args` answers with one line.
    """
    group = parser.add_argument_group(
        "kairos",
        "SLO-aware scheduling. Without --kairos the server behaves as upstream's. A request may "
        "override the SLO by headers (x-kairos-slo-ttft-ms, x-kairos-slo-tpot-ms, "
        "x-kairos-slo-class) or a `kairos` object in its body.",
    )
    group.add_argument("--kairos", action="store_true", help="Schedule by deadlines.")
    _add_slo_arguments(group)
    group.add_argument(
        "--kairos-profile",
        metavar="NAME_OR_FILE",
        help="Latency profile behind predictions: a shipped name "
        f"({', '.join(builtin_profiles())}) or a JSON file (default: {DEFAULT_PROFILE}).",
    )
    group.add_argument(
        "--kairos-state-dir",
        metavar="DIR",
        help="Keep learned latencies in this folder, so that a restart begins with them (default: "
        "nothing is kept).",
    )
    group.add_argument(
        "--kairos-hold",
        action="store_true",
        default=None,
        help="Decode servers hold a first token back until its decode slot is ready, at most until "
        "the TTFT deadline. This moves waiting from the TPOT clock to unused TTFT slack.",
    )
    group.add_argument(
        "--kairos-telemetry",
        metavar="tcp://HOST:PORT",
        help="Publish load, calibration and slack for routers at this address. Port 0 takes a free "
        "one, which /server_info shows. Every host that can reach the address can read the "
        "messages (default: off).",
    )


def _add_slo_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--kairos-ttft-slo-ms",
        metavar="MS",
        help="Time-to-first-token objective of requests that name none, milliseconds from arrival "
        "(default: no objective).",
    )
    group.add_argument(
        "--kairos-tpot-slo-ms",
        metavar="MS",
        help="Time-per-output-token objective of requests that name none, milliseconds after the "
        "first token (default: no objective).",
    )
    group.add_argument(
        "--kairos-slo-class",
        metavar="NAME=TTFT,TPOT",
        action=_Collect,
        nargs="+",
        help="A named class of objectives that requests may choose, milliseconds; repeatable. "
        "Example: --kairos-slo-class interactive=500,25 --kairos-slo-class batch=20000,150",
    )


@dataclass(frozen=True, slots=True)
class _GivenFlags:
    """The Kairos flags of a command line besides --kairos; None where one is absent."""

    ttft_slo_ms: str | None = None
    tpot_slo_ms: str | None = None
    slo_class: list[str] | None = None
    profile: str | None = None
    state_dir: str | None = None
    hold: bool | None = None
    telemetry: str | None = None

    @classmethod
    def of(cls, args: argparse.Namespace) -> "_GivenFlags":
        """Return the flags in the namespace of a parser that may lack some of them."""
        names = [field.name for field in fields(cls)]
        return cls(**{name: getattr(args, f"kairos_{name}", None) for name in names})

    def words(self) -> list[str]:
        """Return the command line that gives these flags."""
        words = []
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None:
                values = [] if value is True else value if isinstance(value, list) else [value]
                words += [f"--kairos-{field.name.replace('_', '-')}", *values]
        return words


def config_from_args(args: argparse.Namespace) -> KairosConfig | None:
    """Return the configuration that `args` ask for; None without --kairos.

    Raises:
        InputError: a value out of range, a class defined twice, an unreadable profile, or a
            Kairos option without --kairos.
    """
    given = _GivenFlags.of(args)
    if not getattr(args, "kairos", False):
        if words := given.words():
            raise InputError(f"{words[0]} has no effect without --kairos; add --kairos")
        return None
    classes = _classes(given)
    profile = DEFAULT_PROFILE if given.profile is None else given.profile
    load_profile(profile)  # refuses a bad one here, before the model is loaded
    if given.state_dir is not None:
        folder = _writable_folder(given.state_dir, "--kairos-state-dir")
        given = replace(given, state_dir=folder)
    if given.telemetry is not None and not is_endpoint(given.telemetry):
        raise InputError(f"--kairos-telemetry: {given.telemetry!r} is not tcp://HOST:PORT")
    return KairosConfig(
        classes,
        profile,
        ("--kairos", *given.words()),
        given.state_dir,
        bool(given.hold),
        given.telemetry,
    )


def _classes(given: _GivenFlags) -> SloClasses:
    """Return the SLO classes that flags define."""
    ttft, tpot = given.ttft_slo_ms, given.tpot_slo_ms
    default = Slo(
        math.inf if ttft is None else ttft_ms(ttft, "--kairos-ttft-slo-ms"),
        math.inf if tpot is None else tpot_ms(tpot, "--kairos-tpot-slo-ms"),
    )
    named: dict[str, Slo] = {}
    for text in given.slo_class or ():
        slo = parse_class(text, "--kairos-slo-class")
        if slo.slo_class in named:
            raise InputError(f"--kairos-slo-class: {slo.slo_class!r} is defined twice")
        named[slo.slo_class] = slo
    return SloClasses(default, named)


def _writable_folder(text: str, flag: str) -> str:
    """Return the absolute path of folder `text`, which is made when missing.

    Raises:
        InputError: it cannot be made or written to.
    """
    folder = Path(text).absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{flag} {text}: {error.strerror or error}") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"{flag} {text}: not writable")
    return str(folder)


def config_from_env() -> KairosConfig | None:
    """Return the configuration in the environment.

    Unset, empty or "0" is off, "1" is on with defaults, other values are read as command-line
    flags.

    Raises:
        InputError: as `config_from_args`, or an unknown flag.
    """
    text = os.environ.get(ENV, "").strip()
    if text in ("", "0"):
        return None
    parser = argparse.ArgumentParser(prog=ENV, add_help=False, exit_on_error=False)
    add_arguments(parser)
    try:
        words = [] if text == "1" else shlex.split(text)
        args, unknown = parser.parse_known_args(words)
    except (ValueError, argparse.ArgumentError) as error:  # an unclosed quote is a ValueError
        raise InputError(f"{ENV}={text!r}: {error}") from error
    if unknown:
        raise InputError(f"{ENV}={text!r}: unknown option {unknown[0]!r}")
    args.kairos = True
    return config_from_args(args)


@functools.cache
def active_config() -> KairosConfig | None:
    """Return `config_from_env`, read once per process."""
    return config_from_env()


@functools.cache
def _given_text() -> str | None:
    """Return the environment's flags as this process was given them; None where it has none."""
    return os.environ.get(ENV)


def config_of_launch(args: argparse.Namespace) -> KairosConfig | None:
    """Return the configuration of a launch: of its flags, or else of the environment.

    A process may launch several servers. Flags of an earlier launch, which `activate` has put into
    the environment, do not count for this one.

    Raises:
        InputError: as `config_from_args` and `config_from_env`.
    """
    given = _given_text()
    if given is None:
        os.environ.pop(ENV, None)
    else:
        os.environ[ENV] = given
    active_config.cache_clear()
    return config_from_args(args) or active_config()


def activate(config: KairosConfig) -> None:
    """Make `config` the one that this process and its children read."""
    _given_text()
    os.environ[ENV] = shlex.join(config.flags)
    active_config.cache_clear()
