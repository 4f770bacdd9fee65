"""The trace that a replay's command line names."""

from kairos.workload.readers import read_trace
from kairos.workload.synthetic import generate
from kairos.workload.trace import Trace

SYNTHETIC = "synthetic:"
_SYNTHETIC_REQUESTS = 20_000  # more than a load of 2 over half an hour takes of any preset


def load_trace(source: str, format_name: str | None, seed: int) -> Trace:
    """Read a file, or generate `synthetic:PRESET`.

    Raises:
        InputError: see `read_trace` and `generate`.
    """
    if source.startswith(SYNTHETIC):
        return generate(source.removeprefix(SYNTHETIC), _SYNTHETIC_REQUESTS, seed)
    return read_trace(source, format_name)
