"""`sglang.srt.server_args`: the command line."""

import argparse
import importlib
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from kairos_patches.hook import Hook, HookKind, HookProcess, UpstreamDependency

if TYPE_CHECKING:
    from sglang.srt.kairos.upstream import ServerArgs


def add_cli_args(result: None, parser: argparse.ArgumentParser) -> None:
    """Add the `kairos` flags behind upstream's."""
    from sglang.srt.kairos.config import add_arguments

    add_arguments(parser)


def from_cli_args(
    original: "Callable[[type, argparse.Namespace], ServerArgs]",
    cls: type,
    args: argparse.Namespace,
) -> "ServerArgs":
    """Validate the flags and hook the HTTP process; the scheduler's process hooks itself."""
    from sglang.srt.kairos.config import activate, config_of_launch
    from sglang.srt.kairos.support import refuse_unsupported

    from kairos.errors import InputError

    server_args = original(cls, args)
    try:
        config = config_of_launch(args)
        if config is None:
            return server_args
        refuse_unsupported(server_args, config)
    except InputError as error:
        print(f"kairos: error: {error}", file=sys.stderr)
        raise SystemExit(2) from error

    from kairos_patches import install, verify

    verify()
    activate(config)
    importlib.import_module("sglang.srt.entrypoints.http_server")  # it gets a middleware
    install(HookProcess.HTTP)
    return server_args


HOOKS = [
    Hook(
        module="sglang.srt.server_args",
        name="ServerArgs.add_cli_args",
        kind=HookKind.AFTER,
        process=HookProcess.LAUNCHER,
        call=add_cli_args,
        changes="Adds the --kairos flags to every parser of server flags.",
        why="Upstream collects its flags from a fixed list of namespaces at import.",
        test="test/unit/sglang_kairos/test_config.py",
    ),
    Hook(
        module="sglang.srt.server_args",
        name="ServerArgs.from_cli_args",
        kind=HookKind.AROUND,
        process=HookProcess.LAUNCHER,
        call=from_cli_args,
        changes="Validates the flags and passes them to child processes in the environment.",
        why="It keeps declared fields only, so a plugin's flag would be parsed and dropped.",
        test="test/unit/sglang_kairos/test_config.py",
    ),
]
DEPENDENCIES: list[UpstreamDependency] = []
