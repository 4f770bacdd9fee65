"""Clusters of real SGLang servers that engine tests share.

    @on(EMULATED_PAIR)
    def test_x(cluster): ...          # running, shared with every other test of EMULATED_PAIR

    @on(EMULATED_PAIR, SINGLE)        # once on each
    def test_y(cluster, clusters):
        with clusters.beside(OTHER) as other: ...   # a second cluster, for this test only

Tests are reordered so that each configuration starts once; one cluster is alive at a time.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from kairos.cluster import Cluster, ClusterError, ClusterSpec, DpAttention
from kairos_emulation.cluster import platform_model, with_platform
from kairos_emulation.launch import Platform


@dataclass(frozen=True)
class Config:
    """A cluster that tests can share; equal configurations are the same cluster.

    Attributes:
        platform: "emulated" or "cpu".
        profile: latency profile of the emulated platform; None is its default.
        prefill, decode: number of servers; 0 of both is a single server.
        dp_attention: data-parallel attention ranks of a server of each role.
        kairos: whether servers schedule by SLO.
        args: flags of every server.
        prefill_args, decode_args: flags of one role.
        env: (name, value) pairs.
    """

    platform: Platform = "emulated"
    profile: str | None = None
    prefill: int = 1
    decode: int = 1
    dp_attention: DpAttention = field(default_factory=DpAttention)
    kairos: bool = False
    args: tuple[str, ...] = ()
    prefill_args: tuple[str, ...] = ()
    decode_args: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        shape = f"{self.prefill}p{self.decode}d" if self.prefill else "single"
        arm = "kairos" if self.kairos else "upstream"
        flags = " ".join((*self.args, *self.prefill_args, *self.decode_args)).replace("--", "")
        ranks = "" if self.dp_attention == DpAttention() else f"dp {self.dp_attention}"
        return " ".join(filter(None, [self.platform, shape, ranks, arm, flags]))

    def spec(self, models: Path) -> ClusterSpec:
        """Return the specification; write its model below `models` when it is missing."""
        spec = ClusterSpec(
            model=platform_model(self.platform, models),
            prefill=self.prefill,
            decode=self.decode,
            dp_attention=self.dp_attention,
            router=None,  # it starts as slowly as a server; tests send to both servers instead
            kairos=self.kairos,
            args=self.args,
            prefill_args=self.prefill_args,
            decode_args=self.decode_args,
            env=dict(self.env),
        )
        return with_platform(spec, self.platform, self.profile)


EMULATED_PAIR = Config(profile="tiny-fast")
CPU_PAIR = Config(platform="cpu")


def on(*configs: Config, long: tuple[Config, ...] = ()) -> pytest.MarkDecorator:
    """Run a test with the fixture `cluster` on each configuration.

    Args:
        configs: of clusters.
        long: configurations on which only a run of tests marked `long` runs it.
    """
    extra = [pytest.param(config, marks=pytest.mark.long) for config in long]
    return pytest.mark.parametrize("cluster", [*configs, *extra], indirect=True, ids=str)


class ClusterPool:
    """Starts clusters on demand, and keeps the last one running."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._started = 0
        self._config: Config | None = None
        self._cluster: Cluster | None = None
        self._failed: dict[Config, ClusterError] = {}

    def get(self, config: Config) -> Cluster:
        """Return the running cluster of this configuration; stop a cluster of another one."""
        if config in self._failed:
            raise self._failed[config]  # a further attempt would cost each test a minute
        if self._cluster is None or self._config != config:
            self.stop()
            cluster = self._new(config)
            try:
                cluster.start()
            except ClusterError as error:
                self._failed[config] = error
                raise
            self._config, self._cluster = config, cluster
        return self._cluster

    @contextmanager
    def beside(self, config: Config) -> Iterator[Cluster]:
        """Start another cluster while the shared one keeps running."""
        with self._new(config) as cluster:
            yield cluster

    def stop(self) -> None:
        """Stop the shared cluster."""
        cluster, self._cluster = self._cluster, None
        if cluster is not None:
            cluster.stop()

    def _new(self, config: Config) -> Cluster:
        self._started += 1
        return Cluster(
            config.spec(self._folder / "models"), self._folder / f"cluster-{self._started}"
        )


def grouped(items: list[pytest.Item]) -> list[pytest.Item]:
    """Return tests without a shared cluster in their order, then the others by configuration."""
    order: dict[Config | None, int] = {None: 0}
    ranks = {item: order.setdefault(config_of(item), len(order)) for item in items}
    return sorted(items, key=ranks.__getitem__)


def config_of(item: pytest.Item) -> Config | None:
    """Return the configuration that a test runs on; None if it has no shared cluster."""
    callspec = getattr(item, "callspec", None)
    return callspec.params.get("cluster") if callspec else None
