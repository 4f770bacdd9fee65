"""Check of the system libraries that the KV transfer loads."""

import pytest

from kairos.cluster.libraries import MOONCAKE_LIBRARIES, check_libraries, uses_mooncake
from kairos.errors import InputError

PRESENT = "libc.so.6"


def test_only_the_packages_of_missing_libraries_are_named():
    libraries = {PRESENT: "libc6", "libkairos-no-1.so": "no1", "libkairos-no-2.so": "no2"}
    with pytest.raises(InputError, match=r"apt-get install no1 no2`$") as error:
        check_libraries(libraries)
    assert "\n" not in str(error.value)


def test_installed_libraries_pass():
    check_libraries({PRESENT: "libc6"})


def test_packages_are_those_of_debian():
    assert list(MOONCAKE_LIBRARIES.values()) == ["libibverbs1", "librdmacm1", "libnuma1"]


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ((), True),
        (("--disaggregation-transfer-backend", "mooncake"), True),
        (("--disaggregation-transfer-backend", "nixl"), False),
        (("--disaggregation-transfer-backend=nixl",), False),
        (("--tp-size", "2", "--disaggregation-transfer-backend"), True),
    ],
)
def test_transfer_backend_is_read_from_the_flags(args, expected):
    assert uses_mooncake(args) is expected
