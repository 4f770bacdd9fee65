"""Request bodies on disk."""

from hypothesis import given
from hypothesis import strategies as st

from kairos.replay.client.spool import Spool


@given(st.lists(st.binary(max_size=200), max_size=20))
def test_bodies_come_back_unchanged(bodies: list[bytes]) -> None:
    spool = Spool(iter(bodies))
    assert len(spool) == len(bodies)
    assert [bytes(spool[i]) for i in range(len(spool))] == bodies
