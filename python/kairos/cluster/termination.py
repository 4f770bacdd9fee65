"""Conversion of SIGTERM into an ordinary exit, so that `with` blocks run to their end."""

import signal
import threading
from types import FrameType
from typing import NoReturn


class TerminationAsExit:
    """Turns SIGTERM into SystemExit(143) between `install` and `restore`.

    It does nothing outside the main thread, or when the program handles SIGTERM itself.
    """

    def __init__(self) -> None:
        self._installed = False

    def install(self) -> None:
        """Handle SIGTERM from now on, if the program does not."""
        if threading.current_thread() is not threading.main_thread():
            return
        if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, _exit)
            self._installed = True

    def restore(self) -> None:
        """Restore the default action of SIGTERM."""
        if self._installed:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            self._installed = False


def _exit(number: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)
