"""The order of engine tests, and the pool that their fixtures use."""

from types import SimpleNamespace

import pytest

from kairos.cluster import ClusterError
from support import clusters
from support.clusters import CPU_PAIR, EMULATED_PAIR, ClusterPool, Config, grouped


def item(name, config=None):
    callspec = SimpleNamespace(params={"cluster": config} if config else {})
    test = SimpleNamespace(callspec=callspec, name=name)
    return type("Item", (), vars(test))()  # hashable, as pytest's items are


def test_each_configuration_is_started_once_and_tests_without_one_come_first():
    same = Config(profile="tiny-fast")
    items = [
        *(item("a1", EMULATED_PAIR), item("b1", CPU_PAIR), item("plain1")),
        *(item("a2", same), item("plain2"), item("b2", CPU_PAIR)),
    ]
    names = [test.name for test in grouped(items)]
    assert names == ["plain1", "plain2", "a1", "a2", "b1", "b2"]


class FakeCluster:
    alive = 0
    starts = 0

    def __init__(self, spec, log_dir):
        self.broken = "--broken" in spec.decode_args

    def start(self):
        FakeCluster.starts += 1
        if self.broken:
            raise ClusterError("broken")
        FakeCluster.alive += 1

    def stop(self):
        FakeCluster.alive -= 1

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.stop()


@pytest.fixture
def pool(tmp_path, monkeypatch):
    monkeypatch.setattr(clusters, "Cluster", FakeCluster)
    monkeypatch.setattr(FakeCluster, "alive", 0)
    monkeypatch.setattr(FakeCluster, "starts", 0)
    return ClusterPool(tmp_path)


def test_one_cluster_is_alive_at_a_time(pool):
    first = pool.get(EMULATED_PAIR)
    assert pool.get(Config(profile="tiny-fast")) is first
    pool.get(CPU_PAIR)
    assert (FakeCluster.alive, FakeCluster.starts) == (1, 2)
    with pool.beside(EMULATED_PAIR):
        assert FakeCluster.alive == 2
    pool.stop()
    pool.stop()
    assert FakeCluster.alive == 0


def test_a_configuration_that_does_not_start_is_not_tried_again(pool):
    for _ in range(2):
        with pytest.raises(ClusterError, match="broken"):
            pool.get(Config(args=("--broken",)))
    assert (FakeCluster.alive, FakeCluster.starts) == (0, 1)
