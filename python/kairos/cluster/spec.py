"""Description of a cluster: its servers, their flags and their environment."""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from kairos.cluster.dp_attention import DpAttention
from kairos.errors import InputError

# Otherwise the KV handshake listens on the machine's address. The ports that Mooncake and torch
# open (any address, random numbers) cannot be set.
_LOOPBACK_ENV = {"SGLANG_HOST_IP": "127.0.0.1"}

Role = Literal["prefill", "decode", "single", "router"]


@dataclass(frozen=True, kw_only=True)
class ClusterSpec:
    """Servers of one cluster on this machine, all on the loopback interface.

    If `prefill` and `decode` are 0, the cluster is one server without disaggregation. Platforms
    without a GPU need further flags and variables: `kairos_emulation.cluster.with_platform` adds
    them.

    Attributes:
        model: model directory, or a name that upstream can resolve.
        prefill, decode: number of servers of each role.
        dp_attention: data-parallel attention ranks of a server of each role.
        args: flags of every server, on top of model, host, port and disaggregation mode.
        prefill_args, decode_args: flags of one role, after `args`.
        env: variables of every process, on top of the launcher's own.
        kairos: adds `--kairos` to every server.
        router: upstream's `mini_lb` (a random pair per request) or `sglang` (its policies),
            `kairos` (kairos-router), or None for servers without a router.
        router_args: flags of the router, after those that name the servers.
        port: port of `Cluster.url`: of the router or the single server; 0 takes a free one.
        start_limit_s: seconds after which the start of a cluster that is not ready fails.
        stop_grace_s: seconds between SIGTERM and SIGKILL.
        server_command: command of a server; flags are appended.
        router_command: command of the router; None runs the module of `router`.
    """

    model: str | Path
    prefill: int = 1
    decode: int = 1
    dp_attention: DpAttention = field(default_factory=DpAttention)
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
        if not self.disaggregated and self.dp_attention.prefill != self.dp_attention.decode:
            raise InputError(
                f"--dp-attention {self.dp_attention}: a single server has one number of ranks. "
                "Give one number, or start prefill and decode servers"
            )
        for role, args in (("prefill", self.prefill_args), ("decode", self.decode_args)):
            self.dp_attention.check(role, (*self.args, *args))

    @property
    def disaggregated(self) -> bool:
        """Return whether prefill and decode run on servers of their own."""
        return self.prefill > 0

    def router_argv(self) -> list[str]:
        """Return the command line of the router, without servers and address."""
        if self.router == "kairos":
            return [*(self.router_command or (sys.executable, "-m", "kairos.router"))]
        command = self.router_command or (sys.executable, "-m", "sglang_router.launch_router")
        return [*command, "--pd-disaggregation", *["--mini-lb"] * (self.router == "mini_lb")]

    def server_argv(
        self, role: Role, host: str, port: int, bootstrap_port: int | None
    ) -> list[str]:
        """Return the command line of one server.

        Args:
            role: role of the server.
            host: address to listen on.
            port: port to listen on.
            bootstrap_port: port of the KV handshake; None for servers other than prefill servers.
        """
        argv = [*self.server_command, "--model-path", str(self.model)]
        argv += [*self.dp_attention.server_args(role), *self.args]
        if role == "prefill":
            argv += self.prefill_args
        elif role == "decode":
            argv += self.decode_args
        if self.kairos:
            argv.append("--kairos")
        # Upstream takes the last of a repeated flag, and the launcher relies on these.
        argv += ["--host", host, "--port", str(port)]
        if role != "single":
            argv += ["--disaggregation-mode", role]
        if bootstrap_port is not None:
            argv += ["--disaggregation-bootstrap-port", str(bootstrap_port)]
        return argv

    def process_env(self) -> dict[str, str]:
        """Return the environment of every process."""
        env = {**os.environ, **_LOOPBACK_ENV, **self.env}
        # Without .pyc files each of the three processes of a server compiles SGLang again.
        env.pop("PYTHONDONTWRITEBYTECODE", None)
        # The last lines before a crash give its reason and must not stay in a buffer.
        env["PYTHONUNBUFFERED"] = "1"
        # Upstream's client of the bootstrap server honours proxies.
        bypass = ["127.0.0.1", "localhost"]
        for name in ("no_proxy", "NO_PROXY"):
            env[name] = ",".join([*filter(None, [env.get(name)]), *bypass])
        return env
