"""Two ways to ask for tokens: SGLang's own endpoint, and the OpenAI one that most servers have."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import orjson

from kairos.replay.client.stream import CompletionStream, TokenStream
from kairos.replay.client.target import Endpoint
from kairos.replay.plan.plan import PlannedRequest

SLO_HEADERS = {
    "kairos": ("x-kairos-slo-ttft-ms", "x-kairos-slo-tpot-ms"),
    "x-slo": ("x-slo-ttft-ms", "x-slo-tpot-ms"),
    "llm-d": ("x-llm-d-slo-ttft-ms", "x-llm-d-slo-tpot-ms"),
    "none": (),
}
"""How the SLO of a request is named on an OpenAI endpoint."""
SloNames = Literal["kairos", "x-slo", "llm-d", "none"]


class Api(Protocol):
    """Writes requests and reads their answers."""

    @property
    def path(self) -> str:
        """Of the endpoint."""

    def body(
        self,
        planned: PlannedRequest,
        rid: str,
        prompt: bytes,
        legs: Sequence[Endpoint],
        send_slo: bool,
    ) -> bytes:
        """JSON body; `prompt` is the list of token ids as JSON."""

    def headers(self, planned: PlannedRequest, send_slo: bool) -> dict[str, str]:
        """Headers on top of those every request has."""

    def stream(self, limit: int) -> TokenStream:
        """Reader of an answer of `limit` tokens."""


@dataclass(frozen=True, slots=True)
class GenerateApi:
    """SGLang's `/generate`. The SLO travels in `custom_params`, as a router would write it."""

    path: str = "/generate"

    def body(
        self,
        planned: PlannedRequest,
        rid: str,
        prompt: bytes,
        legs: Sequence[Endpoint],
        send_slo: bool,
    ) -> bytes:
        sampling: dict[str, Any] = {
            "max_new_tokens": planned.request.output_tokens,
            "ignore_eos": True,
            "temperature": 0,
        }
        if send_slo:
            slo = planned.slo
            sampling["custom_params"] = {
                "kairos": {
                    "ttft_ms": slo.ttft_ms,
                    "tpot_ms": slo.tpot_ms,
                    "elapsed_ms": 0.0,  # it leaves when it is due
                    "class": slo.slo_class,
                }
            }
        fields: dict[str, Any] = {"rid": rid, "stream": True, "sampling_params": sampling}
        if len(legs) > 1:
            fields["bootstrap_host"] = legs[0].bootstrap_host
            fields["bootstrap_port"] = legs[0].bootstrap_port
            fields["bootstrap_room"] = secrets.randbits(63)
        return b"".join((orjson.dumps(fields)[:-1], b',"input_ids":', prompt, b"}"))

    def headers(self, planned: PlannedRequest, send_slo: bool) -> dict[str, str]:
        return {}

    def stream(self, limit: int) -> TokenStream:
        return TokenStream(limit)


@dataclass(frozen=True, slots=True)
class CompletionsApi:
    """`/v1/completions` with token ids as prompt. The SLO travels in headers.

    Attributes:
        model: its name at the server.
        slo_headers: key of SLO_HEADERS.
        key: sent as bearer token; empty: none.
    """

    model: str
    slo_headers: SloNames = "kairos"
    key: str = ""
    path: str = "/v1/completions"

    def body(
        self,
        planned: PlannedRequest,
        rid: str,
        prompt: bytes,
        legs: Sequence[Endpoint],
        send_slo: bool,
    ) -> bytes:
        fields = {
            "model": self.model,
            "max_tokens": planned.request.output_tokens,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
            # The second tells how many tokens each chunk has; servers that do not know it send
            # the first at the end.
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        }
        return b"".join((orjson.dumps(fields)[:-1], b',"prompt":', prompt, b"}"))

    def headers(self, planned: PlannedRequest, send_slo: bool) -> dict[str, str]:
        headers = {"authorization": f"Bearer {self.key}"} if self.key else {}
        if send_slo:
            values = (planned.slo.ttft_ms, planned.slo.tpot_ms)
            for name, value in zip(SLO_HEADERS[self.slo_headers], values, strict=False):
                headers[name] = f"{value:.3f}"
        return headers

    def stream(self, limit: int) -> TokenStream:
        return CompletionStream(limit)
