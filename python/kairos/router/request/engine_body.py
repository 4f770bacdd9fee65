"""The body that both servers of a pair get."""

from collections.abc import Mapping
from typing import Any

import orjson

from kairos.router.paths import GENERATE, RESPONSES
from kairos.router.request.parsing import SLO_KEY, ParsedRequest
from kairos.router.upstream.rooms import Transfer
from kairos.router.workers.endpoint import WorkerEndpoint
from kairos.slo import Slo


def slo_fields(slo: Slo, elapsed_s: float, with_class: bool) -> dict[str, float | str]:
    """The `kairos` object of the body. An engine's default stands in for no objective.

    Args:
        elapsed_s: since the request's arrival.
        with_class: name the class. Engines refuse one that they do not define themselves, and the
            objectives go with every request anyway.
    """
    elapsed_ms = round(max(elapsed_s, 0.0) * 1e3, 3)
    fields: dict[str, float | str] = {**slo.objectives, "elapsed_ms": elapsed_ms}
    if with_class:
        fields["class"] = slo.slo_class
    return fields


def encode_engine_body(
    parsed: ParsedRequest,
    slo: Mapping[str, float | str],
    prefill: WorkerEndpoint,
    transfer: Transfer,
) -> bytes:
    """The body that both engines get.

    Args:
        slo: as of `slo_fields`.
    """
    custom = {SLO_KEY: slo}
    rids, rooms = transfer.rids, transfer.rooms
    body = dict(parsed.body)
    if parsed.path == GENERATE:
        params = body.get("sampling_params")
        if isinstance(params, list):
            body["sampling_params"] = [_with(one, custom) for one in params]
        else:
            body["sampling_params"] = _with(params or {}, custom)
    elif parsed.path == RESPONSES:
        body |= custom  # it has no custom_params
    else:
        body = _with(body, custom)
    batch = parsed.batch
    # Elsewhere upstream's servers would draw a number of their own, which no abort could name.
    name = "request_id" if parsed.path == RESPONSES else "rid"
    body[name] = rids[0] if batch is None else list(rids)
    body["bootstrap_room"] = rooms[0] if batch is None else list(rooms)
    body["bootstrap_host"] = prefill.host if batch is None else [prefill.host] * batch
    port = prefill.bootstrap_port
    body["bootstrap_port"] = port if batch is None else [port] * batch
    return orjson.dumps(body)


def _with(holder: dict[str, Any], custom: dict[str, Any]) -> dict[str, Any]:
    return {**holder, "custom_params": {**(holder.get("custom_params") or {}), **custom}}
