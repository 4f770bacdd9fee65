"""The compiler of the policies' inner loops.

Importing this module imports numba, which takes 0.3 s. Policies import their kernels at
construction, so that `import kairos.policy` stays light.
"""

from collections.abc import Callable
from typing import Any, TypeVar

from numba import njit

F = TypeVar("F", bound=Callable[..., Any])


def compiled(function: F) -> F:
    """Compile a function at its first call, or load it from an earlier process.

    Compiled code is kept beside the source, in the user's cache, or in `NUMBA_CACHE_DIR`. numba
    notices a change of the function's own file, not of the kernels that it calls: after such a
    change, delete `*.nbi` and `*.nbc`.
    """
    try:
        machine_code: F = njit(cache=True)(function)
    except RuntimeError:  # every place is read-only
        machine_code = njit(function)
    return machine_code
