"""Targets: pairs of servers, and addresses."""

from collections import Counter

import pytest

from kairos.errors import InputError
from kairos.replay.client.target import Endpoint, PairTarget, UrlTarget


def test_pairs_take_turns_and_all_occur() -> None:
    target = PairTarget(
        [Endpoint(f"p{i}", "", False) for i in range(2)], [Endpoint(f"d{i}", "") for i in range(2)]
    )
    seen = Counter(tuple(endpoint.name for endpoint in target.endpoints(i)) for i in range(8))
    assert seen == {("p0", "d0"): 2, ("p1", "d1"): 2, ("p0", "d1"): 2, ("p1", "d0"): 2}


@pytest.mark.parametrize(
    "url",
    [
        *("", "localhost:3000", "ftp://h:1", "http://", "http://h/?x=1"),
        *("http://h:abc", "http://h:99999", "http://h:0"),
    ],
)
def test_bad_urls_are_refused(url: str) -> None:
    with pytest.raises(InputError, match="--url"):
        UrlTarget(url)
