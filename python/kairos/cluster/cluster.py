"""Start, watch and stop a cluster."""

import logging
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

from kairos.cluster.failure import ServerDiedError
from kairos.cluster.libraries import MOONCAKE_LIBRARIES, check_libraries, uses_mooncake
from kairos.cluster.ports import LOOPBACK, PortReservation
from kairos.cluster.process import SupervisedProcess
from kairos.cluster.progress import Progress
from kairos.cluster.ready import wait_ready
from kairos.cluster.server import Server
from kairos.cluster.spec import ClusterSpec, Role
from kairos.cluster.stats import ClusterStats, ServerStats, tree_pss
from kairos.cluster.termination import TerminationAsExit
from kairos.cluster.watcher import Watcher
from kairos.errors import InputError

_log = logging.getLogger(__name__)


class Cluster:
    """Servers and router of a `ClusterSpec`, running between `with` and its end.

    Entering returns when every pair has served a generation. Leaving, by whatever way, returns
    when no process is left. SIGTERM leaves like Ctrl-C does. If this process is killed, the
    supervisors end everything (see `supervise.py`).

    Attributes:
        servers: prefill servers, decode servers (or the single one), then the router.
    """

    def __init__(self, spec: ClusterSpec, log_dir: str | Path) -> None:
        self.spec = spec
        self.servers: tuple[Server, ...] = ()
        self._log_dir = Path(log_dir)
        self._processes: list[SupervisedProcess] = []
        self._watcher: Watcher | None = None
        self._termination = TerminationAsExit()
        self._listening_s: dict[str, float] = {}
        self._ready_s = 0.0

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """Where requests go: the router, or the single server.

        Raises:
            RuntimeError: there is neither.
        """
        for server in reversed(self.servers):
            if server.role in ("router", "single"):
                return server.url
        raise RuntimeError("this cluster has no router" if self.servers else "not running")

    @property
    def prefill(self) -> tuple[Server, ...]:
        """Prefill servers."""
        return tuple(server for server in self.servers if server.role == "prefill")

    @property
    def decode(self) -> tuple[Server, ...]:
        """Decode servers."""
        return tuple(server for server in self.servers if server.role == "decode")

    def start(self) -> None:
        """Starts everything and returns when it is ready; on failure nothing is left running.

        Raises:
            InputError: a port in use, a missing system library, no place for logs.
            ClusterError: a process died, with its last log lines; or not ready in time.
        """
        if self._processes:
            raise RuntimeError("already running")
        spec = self.spec
        args = (*spec.args, *spec.prefill_args, *spec.decode_args)
        if spec.disaggregated and uses_mooncake(args):
            check_libraries(MOONCAKE_LIBRARIES)
        try:
            self._log_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"log directory {self._log_dir}: {error.strerror}") from None
        try:
            self._start_once()
        except ServerDiedError as died:
            if not died.port_taken:
                raise
            _log.warning("%s lost a port to another process; once more with others", died.name)
            self._start_once()

    def check(self) -> None:
        """Returns at once if every process runs.

        Raises:
            ServerDiedError: one has ended.
        """
        self.wait(0)

    def wait(self, timeout_s: float | None = None) -> None:
        """Returns after `timeout_s` seconds; never, when None.

        Raises:
            ServerDiedError: as soon as a process ends.
        """
        if self._watcher is None:
            raise RuntimeError("not running")
        self._watcher.wait(timeout_s)

    def stats(self) -> ClusterStats:
        """Start-up times and the memory in use now."""
        servers = []
        for server, process in zip(self.servers, self._processes, strict=True):
            pss, count = tree_pss(process.supervisor_pid)
            servers.append(ServerStats(server.name, self._listening_s[server.name], pss, count))
        return ClusterStats(self._ready_s, tuple(servers))

    def stop(self) -> None:
        """Stops everything, all servers at the same time; returns when nothing is left.

        Raises:
            RuntimeError: processes that SIGKILL does not end, named by pid.
        """
        if self._watcher is not None:
            self._watcher.close()
            self._watcher = None
        for process in self._processes:
            process.request_stop()
        for process in self._processes:
            process.wait_gone()
        self._processes.clear()
        self.servers = ()
        self._termination.restore()

    def _start_once(self) -> None:
        begin = time.monotonic()
        progress = Progress()
        ports = PortReservation()
        pairs = max(1, self.spec.prefill * self.spec.decode)
        pool = ThreadPoolExecutor(2 * pairs, thread_name_prefix="kairos-cluster-probe")
        try:
            self._termination.install()
            self._launch(ports)
            self._watcher = watcher = Watcher(self._processes)

            def on_poll(stages: dict[str, str]) -> None:
                watcher.wait(0)
                progress.show(stages)

            self._listening_s = wait_ready(self.servers, pool, self.spec.start_limit_s, on_poll)
            self._ready_s = time.monotonic() - begin
            watcher.serving = True
        except BaseException:
            progress.close()
            self.stop()
            raise
        finally:
            progress.close()
            ports.close()
            # After `stop`, which ends requests that still wait for an answer.
            pool.shutdown(cancel_futures=True)

    def _launch(self, ports: PortReservation) -> None:
        spec = self.spec
        self.servers = ()
        # First, so that a port in use is reported before anything starts.
        url_port = ports.take(spec.port)
        if not spec.disaggregated:
            self._launch_server("single", "single", url_port, None)
            return
        for index in range(spec.prefill):
            self._launch_server("prefill", f"prefill-{index}", ports.take(), ports.take())
        for index in range(spec.decode):
            self._launch_server("decode", f"decode-{index}", ports.take(), None)
        if spec.router is not None:
            self._run("router", "router", url_port, None, self._router_argv(url_port))

    def _launch_server(self, role: Role, name: str, port: int, bootstrap_port: int | None) -> None:
        argv = self.spec.server_argv(role, LOOPBACK, port, bootstrap_port)
        self._run(role, name, port, bootstrap_port, argv)

    def _router_argv(self, port: int) -> list[str]:
        argv = self.spec.router_argv()
        for server in self.prefill:
            argv += ["--prefill", server.url, str(server.bootstrap_port)]
        for server in self.decode:
            argv += ["--decode", server.url]
        return [*argv, *self.spec.router_args, "--host", LOOPBACK, "--port", str(port)]

    def _run(
        self, role: Role, name: str, port: int, bootstrap_port: int | None, argv: list[str]
    ) -> None:
        log = self._log_dir / f"{name}.log"
        process = SupervisedProcess(
            name, argv, self.spec.process_env(), log, self.spec.stop_grace_s
        )
        self._processes.append(process)
        server = Server(name, role, port, bootstrap_port, process.pid, log)
        self.servers = (*self.servers, server)
