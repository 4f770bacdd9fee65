"""Results of simulations on disk, so that a long sweep resumes where it stopped."""

import hashlib
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import orjson

import kairos
from kairos.latency import load_profile
from kairos.sim.sweep_point import SweepPoint, run_checked

_PACKAGES = ("latency", "policy", "sim", "workload")


class ResultCache:
    """A folder of results, one file per simulation.

    The key of a result is the simulation, the content of its trace and profile, and the code that
    computes it. Results of other code stay in the folder and are not used.

    Args:
        folder: made when the first result is written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def run(self, point: SweepPoint) -> dict[str, Any]:
        """Return the stored result of a simulation, or simulate and store it."""
        path = self._folder / f"{_key(point)}.json"
        try:
            stored: dict[str, Any] = orjson.loads(path.read_bytes())
            return stored
        except (FileNotFoundError, orjson.JSONDecodeError):
            pass
        result = run_checked(point)
        self._folder.mkdir(parents=True, exist_ok=True)
        # A reader never sees half a file.
        part = path.with_suffix(".part")
        part.write_bytes(orjson.dumps(result, option=orjson.OPT_SERIALIZE_NUMPY))
        part.replace(path)
        return result


def _key(point: SweepPoint) -> str:
    described = repr((point, load_profile(point.profile))).encode()
    return _hash([described, _content(point.trace), _code()])


@cache
def _content(path: str) -> bytes:
    return Path(path).read_bytes()


@cache
def _code() -> bytes:
    root = Path(kairos.__file__).parent
    files = sorted(path for name in _PACKAGES for path in (root / name).rglob("*"))
    wanted = [path for path in files if path.suffix in {".py", ".json"}]
    return _hash(path.read_bytes() for path in wanted).encode()


def _hash(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()[:32]
