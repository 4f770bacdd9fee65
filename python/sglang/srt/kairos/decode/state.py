"""The learned values of a decode server, kept in a file between runs."""

import logging
import threading
import time
from collections.abc import Callable, Mapping

from kairos.errors import InputError
from kairos.latency.store import load_state, save_state

STATE = "decode"
SAVE_EVERY_S = 30.0

_log = logging.getLogger(__name__)

Restore = Callable[[dict[str, object]], None]


class DecodeStateFile:
    """The state file of one decode server.

    Args:
        folder: folder of the file.
        key: describes the engine; state of another engine is ignored.
        local_time: monotonic seconds.
    """

    def __init__(
        self, folder: str, key: str, local_time: Callable[[], float] = time.monotonic
    ) -> None:
        self._folder = folder
        self._key = key
        self._local_time = local_time
        self._saved_s = local_time()

    def due(self) -> bool:
        """Return whether the last save is long enough ago, and begin the next interval if so."""
        now = self._local_time()
        if now - self._saved_s <= SAVE_EVERY_S:
            return False
        self._saved_s = now
        return True

    def save(self, state: Mapping[str, object]) -> None:
        """Write the state in a thread of its own, so that no step waits for the disk."""
        threading.Thread(
            target=self._write, args=(state,), name="kairos-state", daemon=True
        ).start()

    def restore(self, parts: Mapping[str, Restore]) -> None:
        """Restore each part from the file.

        A part that cannot be restored is logged, and starts without learned values.

        Args:
            parts: by name: what restores the part, or raises `InputError`.
        """
        try:
            state = load_state(self._folder, STATE, self._key)
        except InputError as error:
            _log.warning("Kairos starts without the values learned before: %s", error)
            return
        if state is None:
            return
        for name, restore in parts.items():
            try:
                restore(state[name])
            except (InputError, KeyError, TypeError) as error:
                _log.warning("Kairos starts without the %s learned before: %s", name, error)

    def _write(self, state: Mapping[str, object]) -> None:
        try:
            save_state(self._folder, STATE, self._key, state)
        except InputError as error:
            _log.warning("Kairos: %s", error)
