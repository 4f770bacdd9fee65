"""Telemetry from a Kairos engine to a router: one msgpack map per message."""

import re

import msgspec

VERSION = 1
MAX_BYTES = 4096
"""Longest message; longer ones are not received."""


class TelemetryReport(msgspec.Struct, frozen=True, kw_only=True):
    """One message; a field is None where it does not apply.

    Fields may be added: receivers ignore unknown fields. `version` changes when a field changes its
    meaning.

    Attributes:
        epoch: random text, new after every start of the engine.
        sequence: number of the message in its epoch.
        role: "prefill", "decode" or "null".
        running: requests in its batch, skipped ones included.
        waiting: requests in its queues.
        max_running: most requests that it runs.
        kv_used_tokens: KV tokens in use or requested by queued requests.
        kv_capacity_tokens: KV tokens in total.
        version: of the message format.
        uncached_tokens: prompt tokens that are not computed.
        backlog_s: predicted time to compute them, seconds.
        calibration: measured / predicted time of the latency model.
        skipped: requests that do not run in the current decode step.
        skipped_kv_tokens: KV tokens that they hold.
        slack_s: smallest slack of the residents, seconds.
    """

    epoch: str
    sequence: int
    role: str
    running: int
    waiting: int
    max_running: int
    kv_used_tokens: int
    kv_capacity_tokens: int
    version: int = VERSION
    uncached_tokens: int | None = None
    backlog_s: float | None = None
    calibration: float | None = None
    skipped: int | None = None
    skipped_kv_tokens: int | None = None
    slack_s: float | None = None


_ENDPOINT = re.compile(
    r"tcp://(?:[A-Za-z0-9_.-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\]):([0-9]{1,5})", re.A
)


def is_endpoint(text: str) -> bool:
    """Return whether `text` is `tcp://host:port`."""
    found = _ENDPOINT.fullmatch(text)
    return found is not None and int(found[1]) <= 65_535


encoder = msgspec.msgpack.Encoder()
decoder = msgspec.msgpack.Decoder(TelemetryReport)
