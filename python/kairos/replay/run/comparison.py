"""Differences of runs that forbid to compare them."""

from kairos.latency import Profile
from kairos.replay.run.header import RunHeader

SAME_WORK = (
    *("trace_sha256", "start_s", "load", "cache_tokens", "dilate", "instances"),
    *("dp_attention", "time_scale", "span_s", "requests", "slo_set", "tpot_ms", "seed"),
    *("profile", "emulated", "timeout_s", "budget_s", "mini_lb", "machine"),
)
"""Fields of the header in which runs must agree to be compared."""


def differences(one: RunHeader, other: RunHeader) -> list[str]:
    """Return how the work of two runs or their software differs, one line per field."""
    found = []
    for name in SAME_WORK:
        a, b = getattr(one, name), getattr(other, name)
        if a != b:
            if isinstance(a, Profile) and isinstance(b, Profile):
                a, b = (a.name, b.name) if a.name != b.name else ("", "another of the same name")
            found.append(f"{name} is {a!r} and {b!r}")
    for name in ("sglang", "kairos-sglang"):
        a, b = one.versions.get(name), other.versions.get(name)
        if a != b:
            found.append(f"version of {name} is {a} and {b}")
    # Outside of a checkout the commit is unknown, and only versions can be compared.
    if one.git_commit and other.git_commit and one.git_commit != other.git_commit:
        found.append(f"commit is {one.git_commit} and {other.git_commit}")
    return found


def server_differences(one: RunHeader, other: RunHeader) -> list[str]:
    """Return how the servers of two runs of one arm differ, one line per role."""
    # Servers that a run starts itself have other ports each time.
    varies = {"client", "client sends to"} if one.emulated else {"client"}
    found = []
    for role in dict.fromkeys((*one.servers, *other.servers)):
        a, b = one.servers.get(role, []), other.servers.get(role, [])
        if role not in varies and a != b:
            found.append(
                f"servers, {role}: {' '.join(a) or 'none'!r} and {' '.join(b) or 'none'!r}"
            )
    return found
