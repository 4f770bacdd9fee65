"""A thread that detects the end of any process of a cluster."""

import contextlib
import logging
import os
import selectors
import threading
from collections.abc import Sequence

from kairos.cluster.failure import ServerDiedError
from kairos.cluster.process import SupervisedProcess

_log = logging.getLogger(__name__)


class Watcher:
    """Waits on every process at once and keeps the first death.

    Attributes:
        failure: the first death; None while every process runs.
        serving: set when the cluster is ready. From then on a death is logged at once.
    """

    def __init__(self, processes: Sequence[SupervisedProcess]) -> None:
        self.failure: ServerDiedError | None = None
        self.serving = False
        self._failed = threading.Event()
        self._wake_reader, self._wake_writer = os.pipe()
        self._thread = threading.Thread(
            target=self._watch, args=(processes,), name="kairos-cluster-watcher", daemon=True
        )
        self._thread.start()

    def wait(self, timeout_s: float | None) -> None:
        """Return after `timeout_s` seconds; never, when it is None.

        Raises:
            ServerDiedError: a process has died.
        """
        self._failed.wait(timeout_s)
        if self.failure is not None:
            raise self.failure

    def close(self) -> None:
        """Stop watching. Deaths from now on are intended."""
        os.close(self._wake_writer)
        self._thread.join()
        os.close(self._wake_reader)

    def _watch(self, processes: Sequence[SupervisedProcess]) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._wake_reader, selectors.EVENT_READ)
            for process in processes:
                selector.register(process, selectors.EVENT_READ, process)
            while True:
                for key, _ in selector.select():
                    if key.fd == self._wake_reader:
                        return
                    status = key.data.poll()
                    if status.ended:
                        selector.unregister(key.fd)
                        self._on_death(key.data, status.exit_code)

    def _on_death(self, process: SupervisedProcess, exit_code: int | None) -> None:
        died = ServerDiedError(
            process.name, exit_code, process.log, "while serving" if self.serving else "at start"
        )
        if self.serving:
            _log.error("%s", died)
        if self.failure is None:
            self.failure = died
            self._failed.set()
        if exit_code is None:
            # Its supervisor is gone, which would have ended the server's children.
            with contextlib.suppress(RuntimeError):  # `wait_gone` raises it again
                process.kill_session()
