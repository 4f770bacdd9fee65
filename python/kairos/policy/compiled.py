"""The compiler of the policies' inner loops. Importing this imports numba (0.3 s): policies import
their kernels at construction, so that `import kairos.policy` stays light."""

from collections.abc import Callable
from typing import Any, TypeVar

from numba import njit

F = TypeVar("F", bound=Callable[..., Any])


def compiled(function: F) -> F:
    """Compile at the first call, or load what an earlier process compiled, where there is a place
    to keep it: beside the source, in the user's cache, or in `NUMBA_CACHE_DIR`."""
    try:
        machine_code: F = njit(cache=True)(function)
    except RuntimeError:  # every place is read-only
        machine_code = njit(function)
    return machine_code
