"""Starting, watching and stopping a cluster."""

import logging
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

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


class _Member(NamedTuple):
    """A server or the router, and its process."""

    server: Server
    process: SupervisedProcess


class _Serving(NamedTuple):
    """A cluster that is ready.

    Attributes:
        watcher: watches every process.
        listening_s: seconds from the launch until a server accepted connections, by name.
        ready_s: seconds from the launch until every pair had served a generation.
    """

    watcher: Watcher
    listening_s: Mapping[str, float]
    ready_s: float


class Cluster:
    """Servers and router of a `ClusterSpec`, running between `with` and its end.

    Entering returns when every pair has served a generation. Leaving returns when no process is
    left, whatever the reason. SIGTERM ends the `with` block as Ctrl-C does. If this process is
    killed, the supervisors end every process (see `supervise.py`).

    Args:
        spec: describes the cluster.
        log_dir: receives one log file per process.
    """

    def __init__(self, spec: ClusterSpec, log_dir: str | Path) -> None:
        self.spec = spec
        self._log_dir = Path(log_dir)
        self._members: tuple[_Member, ...] = ()
        self._serving: _Serving | None = None
        self._termination = TerminationAsExit()

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
    def servers(self) -> tuple[Server, ...]:
        """Return the prefill servers, the decode servers (or the single one), then the router."""
        return tuple(member.server for member in self._members)

    @property
    def url(self) -> str:
        """Return the URL that takes requests: the router's, or the single server's.

        Raises:
            RuntimeError: there is neither.
        """
        for server in reversed(self.servers):
            if server.role in ("router", "single"):
                return server.url
        raise RuntimeError("this cluster has no router" if self.servers else "not running")

    @property
    def prefill(self) -> tuple[Server, ...]:
        """Return the prefill servers."""
        return tuple(server for server in self.servers if server.role == "prefill")

    @property
    def decode(self) -> tuple[Server, ...]:
        """Return the decode servers."""
        return tuple(server for server in self.servers if server.role == "decode")

    def start(self) -> None:
        """Start every process and return when the cluster is ready.

        On failure no process is left running.

        Raises:
            InputError: a port is in use, a system library is missing, or the log directory cannot
                be created.
            ClusterError: a process died, with its last log lines; or not ready in time.
        """
        if self._members:
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
            _log.warning("%s lost a port to another process; starting with other ports", died.name)
            self._start_once()

    def check(self) -> None:
        """Return at once if every process runs.

        Raises:
            ServerDiedError: one has ended.
        """
        self.wait(0)

    def wait(self, timeout_s: float | None = None) -> None:
        """Return after `timeout_s` seconds; never, when it is None.

        Raises:
            ServerDiedError: as soon as a process ends.
            RuntimeError: the cluster does not run.
        """
        if self._serving is None:
            raise RuntimeError("not running")
        self._serving.watcher.wait(timeout_s)

    def stats(self) -> ClusterStats:
        """Return start-up times and the memory in use now.

        Raises:
            InputError: psutil is not installed.
            RuntimeError: the cluster does not run.
        """
        if self._serving is None:
            raise RuntimeError("not running")
        servers = []
        for server, process in self._members:
            pss, count = tree_pss(process.supervisor_pid)
            start_s = self._serving.listening_s[server.name]
            servers.append(ServerStats(server.name, start_s, pss, count))
        return ClusterStats(self._serving.ready_s, tuple(servers))

    def stop(self) -> None:
        """Stop all processes at the same time, and return when none is left.

        Raises:
            RuntimeError: processes survive SIGKILL; the message names their pids.
        """
        if self._serving is not None:
            self._serving.watcher.close()
            self._serving = None
        for member in self._members:
            member.process.request_stop()
        for member in self._members:
            member.process.wait_gone()
        self._members = ()
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
            self._serving = self._await_ready(begin, pool, progress)
        except BaseException:
            progress.close()
            self.stop()
            raise
        finally:
            progress.close()
            ports.close()
            # After `stop`, which ends requests that still wait for an answer.
            pool.shutdown(cancel_futures=True)

    def _await_ready(self, begin: float, pool: ThreadPoolExecutor, progress: Progress) -> _Serving:
        watcher = Watcher([member.process for member in self._members])

        def on_poll(stages: dict[str, str]) -> None:
            watcher.wait(0)
            progress.show(stages)

        try:
            listening_s = wait_ready(self.servers, pool, self.spec.start_limit_s, on_poll)
            watcher.serving = True
            return _Serving(watcher, listening_s, time.monotonic() - begin)
        except BaseException:
            watcher.close()
            raise

    def _launch(self, ports: PortReservation) -> None:
        spec = self.spec
        # First, so that a port in use is reported before any process starts.
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
        server = Server(name, role, port, bootstrap_port, process.pid, log)
        self._members = (*self._members, _Member(server, process))
