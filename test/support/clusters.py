"""Clusters of real SGLang servers that engine tests share.

    @on(EMULATED_PAIR)
    def test_x(cluster): ...          # running, shared with every other test of EMULATED_PAIR

    @on(EMULATED_PAIR, SINGLE)        # once on each
    def test_y(cluster, clusters):
        with clusters.beside(OTHER) as other: ...   # a second one, for this test only

Tests are reordered so that each configuration starts once; one cluster is alive at a time.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from kairos.cluster import Cluster, ClusterError, ClusterSpec
from kairos_emulation.cluster import platform_model, with_platform
from kairos_emulation.launch import Platform


@dataclass(frozen=True)
class Config:
    """A cluster that tests can share; equal configurations are the same cluster.

    Attributes:
        profile: for the emulated platform.
        env: (name, value) pairs.
    """

    platform: Platform = "emulated"
    profile: str | None = None
    prefill: int = 1
    decode: int = 1
    kairos: bool = False
    args: tuple[str, ...] = ()
    prefill_args: tuple[str, ...] = ()
    decode_args: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        shape = f"{self.prefill}p{self.decode}d" if self.prefill else "single"
        arm = "kairos" if self.kairos else "upstream"
        flags = " ".join((*self.args, *self.prefill_args, *self.decode_args)).replace("--", "")
        return " ".join(filter(None, [self.platform, shape, arm, flags]))

    def spec(self, models: Path) -> ClusterSpec:
        """The specification, its model written below `models` when missing."""
        spec = ClusterSpec(
            model=platform_model(self.platform, models),
            prefill=self.prefill,
            decode=self.decode,
            router=None,  # its start takes as long as a server's; tests speak to both legs
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
    """Runs a test with the fixture `cluster` on each configuration; on those of `long` only where
    tests marked so run."""
    extra = [pytest.param(config, marks=pytest.mark.long) for config in long]
    return pytest.mark.parametrize("cluster", [*configs, *extra], indirect=True, ids=str)


class ClusterPool:
    """Starts clusters when asked for; keeps the last one running."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._started = 0
        self._config: Config | None = None
        self._cluster: Cluster | None = None
        self._failed: dict[Config, ClusterError] = {}

    def get(self, config: Config) -> Cluster:
        """The running cluster of this configuration; stops that of another."""
        if config in self._failed:
            raise self._failed[config]  # every further try would cost its tests a minute each
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
        """One more cluster, of its own, while the shared one keeps running."""
        with self._new(config) as cluster:
            yield cluster

    def stop(self) -> None:
        """Stops the shared cluster."""
        cluster, self._cluster = self._cluster, None
        if cluster is not None:
            cluster.stop()

    def _new(self, config: Config) -> Cluster:
        self._started += 1
        return Cluster(
            config.spec(self._folder / "models"), self._folder / f"cluster-{self._started}"
        )


def grouped(items: list[pytest.Item]) -> list[pytest.Item]:
    """Tests without a shared cluster as they were, then those of one configuration together."""
    order: dict[Config | None, int] = {None: 0}
    ranks = {item: order.setdefault(config_of(item), len(order)) for item in items}
    return sorted(items, key=ranks.__getitem__)


def config_of(item: pytest.Item) -> Config | None:
    """Configuration that a test runs on."""
    callspec = getattr(item, "callspec", None)
    return callspec.params.get("cluster") if callspec else None
