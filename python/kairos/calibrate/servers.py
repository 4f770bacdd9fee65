"""Description of the servers to be measured, from their `/server_info`."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from urllib.parse import urlsplit
from urllib.request import urlopen

import orjson

from kairos.errors import InputError
from kairos.latency import InstanceLimits
from kairos.replay.client.target import Endpoint, UrlTarget
from kairos.validation import as_number

_TIMEOUT_S = 10.0
_SECRET = re.compile(r"(--\S*api-key[ =])\S+")

ServerInfo = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class MeasuredServers:
    """One server, or a prefill and a decode server.

    Attributes:
        endpoints: receive the requests.
        limits: the smaller limits of both.
        longest_prompt: tokens; prompts must be shorter.
        kairos: whether they schedule by SLO.
        model: served name or path of the model.
        version: version of SGLang.
        commands: launch commands, by role.
    """

    endpoints: tuple[Endpoint, ...]
    limits: InstanceLimits
    longest_prompt: int
    kairos: bool
    model: str
    version: str
    commands: Mapping[str, str]


def describe_servers(urls: Sequence[str], model: str | None = None) -> MeasuredServers:
    """Ask the servers at `urls` for their limits.

    Args:
        urls: a single server, or prefill and decode server in any order.
        model: path or served name that they must have; None allows any.

    Raises:
        InputError: a server is unreachable, of the wrong role, or of another model.
    """
    if not 1 <= len(urls) <= 2:
        raise InputError(f"--url: {len(urls)} servers; allowed are one, or a prefill and a decode")
    infos = {url.rstrip("/"): _info(url) for url in urls}
    roles = {url: str(info.get("disaggregation_mode", "null")) for url, info in infos.items()}
    wanted = ["null"] if len(urls) == 1 else ["decode", "prefill"]
    if sorted(roles.values()) != wanted:
        found = ", ".join(f"{url} is {_role(role)}" for url, role in roles.items())
        raise InputError(
            f"--url: {found}; allowed are one server without disaggregation, or a prefill and a "
            "decode server"
        )
    for url, info in infos.items():
        _check_model(url, info, model)
    first = next((u for u, role in roles.items() if role != "decode"), urls[0])
    last = next((u for u, role in roles.items() if role != "prefill"), urls[-1])
    return MeasuredServers(
        endpoints=_endpoints(first, last, infos[first]),
        limits=_limits(infos[first], infos[last]),
        longest_prompt=min(int(_number(u, i, "max_req_input_len")) for u, i in infos.items()),
        kairos=any("kairos" in _state(info) for info in infos.values()),
        model=str(infos[last].get("served_model_name") or infos[last].get("model_path")),
        version=str(infos[last].get("version", "unknown")),
        commands={
            _role(roles[url]): _SECRET.sub(r"\1...", str(info.get("launch_command") or "unknown"))
            for url, info in infos.items()
        },
    )


def _endpoints(first: str, last: str, prefill: ServerInfo) -> tuple[Endpoint, ...]:
    if first == last:
        return (Endpoint("server", first),)
    host = urlsplit(first).hostname or ""
    port = int(_number(first, prefill, "disaggregation_bootstrap_port"))
    return (
        Endpoint("prefill", first, streams=False, bootstrap_host=host, bootstrap_port=port),
        Endpoint("decode", last),
    )


def _limits(prefill: ServerInfo, decode: ServerInfo) -> InstanceLimits:
    chunk = int(as_number(prefill.get("chunked_prefill_size")) or 0)
    if chunk <= 0:  # without chunks, this limit ends a batch
        chunk = int(_number("prefill", prefill, "max_prefill_tokens"))
    kv = min(int(_number("server", info, "max_total_num_tokens")) for info in (prefill, decode))
    running = _state(decode).get("effective_max_running_requests_per_dp") or decode.get(
        "max_running_requests"
    )
    if not isinstance(running, int) or running < 1:
        raise InputError("--url: the server does not report its largest number of running requests")
    return InstanceLimits(chunk, kv, running)


def _check_model(url: str, info: ServerInfo, model: str | None) -> None:
    served = {str(info[name]) for name in ("model_path", "served_model_name") if info.get(name)}
    if model is not None and model not in served:
        raise InputError(f"--model: {url} serves {', '.join(sorted(served))}, not {model}")
    if info.get("is_embedding"):
        raise InputError(f"--url: {url} serves an embedding model, which generates no tokens")


def _info(url: str) -> ServerInfo:
    UrlTarget(url)
    address = f"{url.rstrip('/')}/server_info"
    try:
        with urlopen(address, timeout=_TIMEOUT_S) as answer:
            info: object = orjson.loads(answer.read())
    except (OSError, HTTPException, ValueError) as error:
        if getattr(error, "code", None) in (404, 405):
            raise InputError(
                f"--url: {url} is no SGLang server ({address}: {error}); for a router, name the "
                "servers behind it"
            ) from error
        raise InputError(f"--url: no answer of an SGLang server at {address}: {error}") from error
    if not isinstance(info, dict) or "max_total_num_tokens" not in info:
        raise InputError(f"--url: {address} lacks max_total_num_tokens; is it SGLang?")
    return info


def _state(info: ServerInfo) -> ServerInfo:
    states = info.get("internal_states")
    first = states[0] if isinstance(states, list) and states else None
    return first if isinstance(first, dict) else {}


def _number(where: str, info: ServerInfo, name: str) -> float:
    number = as_number(info.get(name))
    if number is None:
        raise InputError(
            f"--url: /server_info of {where} has {name} {info.get(name)!r}, not a number"
        )
    return number


def _role(mode: str) -> str:
    return {"null": "server"}.get(mode, mode)
