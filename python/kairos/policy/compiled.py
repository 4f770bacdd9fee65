"""The compiler of the policies' inner loops.

Importing this module imports numba, which takes 0.3 s. Policies import their kernels at
construction, so that `import kairos.policy` stays light.
"""

import contextlib
import functools
import logging
import pickle
from collections.abc import Callable
from typing import Any, TypeVar

from numba import njit
from numba.core.caching import FunctionCache

F = TypeVar("F", bound=Callable[..., Any])

_UNREADABLE = (AttributeError, EOFError, ImportError, IndexError, pickle.UnpicklingError)
"""Errors of unpickling an entry that another version wrote, or a damaged one."""

_log = logging.getLogger(__name__)


class _KernelCache(FunctionCache):  # type: ignore[misc]  # numba is not typed
    """A cache of compiled code that starts anew where its files are unreadable.

    An entry names the classes of the arguments. In an older version of Kairos these may have had
    other names, and numba passes the error of unpickling on to the caller of the function.
    """

    def load_overload(self, sig: object, target_context: object) -> object:
        """Return the compiled code for a signature; None if there is none that can be read."""
        try:
            return super().load_overload(sig, target_context)
        except _UNREADABLE:
            with contextlib.suppress(OSError):
                self.flush()
            return None


def compiled(function: F) -> F:
    """Compile a function at its first call, or load it from an earlier process.

    Compiled code is kept beside the source, in the user's cache, or in `NUMBA_CACHE_DIR`. numba
    notices a change of the function's own file, not of the kernels that it calls: after such a
    change, delete `*.nbi` and `*.nbc`.
    """
    machine_code: Any = njit(function)
    try:
        machine_code._cache = _KernelCache(function)
    except RuntimeError:
        _warn_uncached()
    kernel: F = machine_code
    return kernel


@functools.cache
def _warn_uncached() -> None:
    """Log once that this process compiles by itself."""
    _log.warning(
        "Kairos compiles its policies at every start, which takes seconds: no folder for compiled "
        "code is writable. Set NUMBA_CACHE_DIR to a writable folder that outlives the process."
    )
