"""The trace that a replay's command line names."""

from kairos.workload.readers import read_trace
from kairos.workload.synthetic import generate
from kairos.workload.trace import Trace

SYNTHETIC = "synthetic:"
_SYNTHETIC_REQUESTS = 20_000  # more than half an hour at a load of 2 takes, of any preset


def load_trace(source: str, format_name: str | None, seed: int) -> Trace:
    """Read a trace file, or generate the trace `synthetic:PRESET`.

    Args:
        source: path of the file, or the preset.
        format_name: format of the file; None recognises it by content.
        seed: seed of a generated trace.

    Raises:
        InputError: the file cannot be read, or the preset is unknown.
    """
    if source.startswith(SYNTHETIC):
        return generate(source.removeprefix(SYNTHETIC), _SYNTHETIC_REQUESTS, seed)
    return read_trace(source, format_name)
