"""Shared clusters: see `support.clusters`. Every test below this folder is an engine test."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from kairos.cluster import Cluster, ServerDiedError
from support.clusters import ClusterPool, grouped

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def clusters(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterPool]:
    pool = ClusterPool(tmp_path_factory.mktemp("clusters"))
    yield pool
    pool.stop()


@pytest.fixture
def cluster(request: pytest.FixtureRequest, clusters: ClusterPool) -> Iterator[Cluster]:
    """The running cluster of the configuration given with `@on(...)`."""
    running = clusters.get(request.param)
    yield running
    try:
        running.check()  # the test that killed a server shall fail, not the next one
    except ServerDiedError:
        clusters.stop()
        raise


@pytest.hookimpl(tryfirst=True)  # before `-m` looks at the markers
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.engine)
    items[:] = grouped(items)
