"""What a cluster consists of."""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from kairos.errors import InputError

# The KV handshake listens on the machine's address otherwise. What Mooncake and torch listen on
# for themselves (any address, random ports) cannot be set.
_LOOPBACK_ENV = {"SGLANG_HOST_IP": "127.0.0.1"}

Role = Literal["prefill", "decode", "single", "router"]


@dataclass(frozen=True, kw_only=True)
class ClusterSpec:
    """Servers of one cluster on this machine, all on the loopback interface.

    `prefill` and `decode` both 0 mean one server without disaggregation. Platforms without a GPU
    need further flags and variables: `kairos_emulation.cluster.spec` fills them in.

    Attributes:
        model: model directory, or a name upstream can resolve.
        prefill, decode: number of servers of each role.
        args: flags of every server, on top of model, host, port and disaggregation mode.
        prefill_args, decode_args: flags of one role, after `args`.
        env: variables of every process, on top of the launcher's own.
        kairos: adds `--kairos` to every server.
        router: upstream's `mini_lb` (a random pair per request) or `sglang` (its policies),
            `kairos` (kairos-router), or None for bare servers.
        router_args: flags of the router, after those that name the servers.
        port: port of `Cluster.url`, i.e. of the router or the single server; 0 takes a free one.
        start_limit_s: seconds after which a cluster that is not ready is given up.
        stop_grace_s: seconds between SIGTERM and SIGKILL.
        server_command, router_command: what is run; flags are appended. `router_command` None
            is the module of `router`.
    """

    model: str | Path
    prefill: int = 1
    decode: int = 1
    args: tuple[str, ...] = ()
    prefill_args: tuple[str, ...] = ()
    decode_args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    kairos: bool = False
    router: Literal["mini_lb", "sglang", "kairos"] | None = "mini_lb"
    router_args: tuple[str, ...] = ()
    port: int = 0
    start_limit_s: float = 600.0
    stop_grace_s: float = 10.0
    server_command: tuple[str, ...] = (sys.executable, "-m", "sglang.launch_server")
    router_command: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.prefill < 0 or self.decode < 0 or (self.prefill == 0) != (self.decode == 0):
            raise InputError(
                f"{self.prefill} prefill and {self.decode} decode servers: allowed are at least "
                "one of each, or none of both for a single server"
            )

    @property
    def disaggregated(self) -> bool:
        """Whether prefill and decode run on servers of their own."""
        return self.prefill > 0

    def router_argv(self) -> list[str]:
        """Command line of the router, but for servers and address."""
        if self.router == "kairos":
            return [*(self.router_command or (sys.executable, "-m", "kairos.router"))]
        command = self.router_command or (sys.executable, "-m", "sglang_router.launch_router")
        return [*command, "--pd-disaggregation", *["--mini-lb"] * (self.router == "mini_lb")]

    def server_argv(
        self, role: Role, host: str, port: int, bootstrap_port: int | None
    ) -> list[str]:
        """Command line of one server."""
        argv = [*self.server_command, "--model-path", str(self.model), *self.args]
        if role == "prefill":
            argv += self.prefill_args
        elif role == "decode":
            argv += self.decode_args
        if self.kairos:
            argv.append("--kairos")
        # Last, so that they win: the launcher must know where a server listens.
        argv += ["--host", host, "--port", str(port)]
        if role != "single":
            argv += ["--disaggregation-mode", role]
        if bootstrap_port is not None:
            argv += ["--disaggregation-bootstrap-port", str(bootstrap_port)]
        return argv

    def process_env(self) -> dict[str, str]:
        """Environment of every process."""
        env = {**os.environ, **_LOOPBACK_ENV, **self.env}
        # Without .pyc files each of the three processes of a server compiles all of SGLang anew.
        env.pop("PYTHONDONTWRITEBYTECODE", None)
        # A crash must not swallow the last lines, which are the reason.
        env["PYTHONUNBUFFERED"] = "1"
        # Upstream talks to the bootstrap server with a client that would ask a proxy.
        bypass = ["127.0.0.1", "localhost"]
        for name in ("no_proxy", "NO_PROXY"):
            env[name] = ",".join([*filter(None, [env.get(name)]), *bypass])
        return env
