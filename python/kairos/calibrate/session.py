"""One calibration: servers, sweep, fit and files."""

import sys
import time
from collections.abc import Callable

from kairos.calibrate.config import CalibrationConfig
from kairos.calibrate.display import Display
from kairos.calibrate.drive import CalibrationPrompt, DriveError, HttpDriver
from kairos.calibrate.grid import estimate_s, make_grid
from kairos.calibrate.measure import Meter
from kairos.calibrate.result import fit_profile, write_samples
from kairos.calibrate.servers import MeasuredServers, describe_servers
from kairos.calibrate.sweep import sweep
from kairos.cluster import Cluster, ClusterSpec
from kairos.errors import InputError
from kairos.latency import Profile, load_profile, save_profile

_FIRST_PROMPT_TOKENS = 64
_FIRST_OUTPUT_TOKENS = 17
_FIRST_LIMIT_S = 120.0
_EXIT_CODES = {"complete": 0, "budget": 0, "failed": 1, "interrupted": 130}

ClusterFactory = Callable[[str], ClusterSpec]


def calibrate(config: CalibrationConfig, cluster_factory: ClusterFactory) -> int:
    """Measure the servers, and write samples, profile and picture.

    Args:
        config: options.
        cluster_factory: describes a prefill and a decode server that emulate a profile.

    Returns:
        Exit code.

    Raises:
        InputError: bad options, or servers that cannot be measured.
        ClusterError: servers that had to be started did not start.
    """
    display = Display(config)
    base = load_profile(config.emulated or config.base)
    config.check_writable()
    if config.emulated is None:
        return _measure(config, display, base, describe_servers(config.urls, config.model))
    spec = cluster_factory(config.emulated)
    display.starting(base)
    with Cluster(spec, config.logs) as cluster:
        urls = [server.url for server in (*cluster.prefill, *cluster.decode)]
        return _measure(config, display, base, describe_servers(urls, config.model))


def _measure(
    config: CalibrationConfig, display: Display, base: Profile, servers: MeasuredServers
) -> int:
    seed = time.time_ns() % 2**31
    driver = HttpDriver(servers.endpoints, send_slo=servers.kairos, seed=seed)
    _check_first_request(driver, servers)
    grid = make_grid(config.axes, servers.limits, servers.longest_prompt)
    total_s = sum(estimate_s(point, base) for point in grid.points)
    display.planned(grid, total_s, base)
    with display.progress(total_s, lambda point: estimate_s(point, base)) as on_point:
        swept = sweep(
            grid.points,
            Meter(driver).measure,
            lambda point: estimate_s(point, base),
            budget_s=config.budget_s,
            now=time.monotonic,
            on_point=on_point,
        )
    skipped = [*grid.skipped, *swept.skipped]
    write_samples(config.samples, servers, swept.samples, skipped)
    display.swept(swept, skipped)
    source = "kairos calibrate"
    if config.emulated:
        source += f" on servers that emulate {base.name} (emulated numbers)"
    try:
        found = fit_profile(swept.samples, servers, base, config.name, source)
        save_profile(found.profile, config.out)
    except InputError as error:
        print(f"calibrate: no profile: {error}", file=sys.stderr)
        return _EXIT_CODES[swept.end] or 1
    display.result(found, base)
    return _EXIT_CODES[swept.end]


def _check_first_request(driver: HttpDriver, servers: MeasuredServers) -> None:
    """Send one request, so that a fault of every request is reported once.

    Raises:
        InputError: the request fails, or its answer is not streamed.
    """
    url = servers.endpoints[-1].url
    prompt = CalibrationPrompt(((_FIRST_PROMPT_TOKENS, 0),))
    try:
        (answer,) = driver.generate([prompt], _FIRST_OUTPUT_TOKENS, _FIRST_LIMIT_S)
    except DriveError as error:
        fault = "does not stream tokens" if str(error).startswith("stream_error") else "failed"
        raise InputError(f"--url: a first request to {url} {fault}: {error}") from error
    if answer.times_s[0] == answer.times_s[-1]:
        raise InputError(
            f"--url: {url} does not stream: {_FIRST_OUTPUT_TOKENS} tokens arrived at once; a proxy "
            "on the way may hold them back"
        )
