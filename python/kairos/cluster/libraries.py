"""System libraries that the KV transfer of a disaggregated pair loads."""

import ctypes
from collections.abc import Mapping, Sequence

from kairos.errors import InputError

# Library that the Mooncake wheel links against -> package of Debian and Ubuntu that contains it.
MOONCAKE_LIBRARIES = {
    "libibverbs.so.1": "libibverbs1",
    "librdmacm.so.1": "librdmacm1",
    "libnuma.so.1": "libnuma1",
}


def check_libraries(libraries: Mapping[str, str]) -> None:
    """Load each library, as the dynamic linker of the server does.

    Args:
        libraries: package that contains it, by file name.

    Raises:
        InputError: at least one cannot be loaded; the message names the packages to install.
    """
    missing = [package for name, package in libraries.items() if not _loads(name)]
    if missing:
        raise InputError(
            f"missing system libraries for the KV transfer (Mooncake): "
            f"install them with `apt-get install {' '.join(missing)}`"
        )


def uses_mooncake(args: Sequence[str]) -> bool:
    """Return whether servers with these flags move KV with Mooncake, upstream's default."""
    flag = "--disaggregation-transfer-backend"
    backend = "mooncake"
    for index, arg in enumerate(args):
        if arg == flag and index + 1 < len(args):
            backend = args[index + 1]
        elif arg.startswith(f"{flag}="):
            backend = arg.partition("=")[2]
    return backend == "mooncake"


def _loads(name: str) -> bool:
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True
