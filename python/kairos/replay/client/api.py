"""Request formats: SGLang's own endpoint, and the OpenAI endpoint that most servers have."""

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
"""Names of the SLO headers of an OpenAI endpoint: TTFT, then TPOT."""
SloNames = Literal["kairos", "x-slo", "llm-d", "none"]


class Api(Protocol):
    """Writes requests and reads their responses."""

    @property
    def path(self) -> str:
        """Path of the endpoint."""

    def body(
        self,
        planned: PlannedRequest,
        rid: str,
        prompt: bytes,
        endpoints: Sequence[Endpoint],
        send_slo: bool,
    ) -> bytes:
        """Return the JSON body.

        Args:
            planned: lengths and SLO of the request.
            rid: id of the request.
            prompt: list of token ids, as JSON.
            endpoints: servers that receive this body.
            send_slo: whether the body carries the SLO.
        """

    def headers(self, planned: PlannedRequest, send_slo: bool) -> dict[str, str]:
        """Return the headers on top of those that every request has."""

    def stream(self, limit: int) -> TokenStream:
        """Return a reader for a response of `limit` tokens."""


@dataclass(frozen=True, slots=True)
class GenerateApi:
    """SGLang's `/generate`. The SLO travels in `custom_params`, as a router would write it."""

    path: str = "/generate"

    def body(
        self,
        planned: PlannedRequest,
        rid: str,
        prompt: bytes,
        endpoints: Sequence[Endpoint],
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
                    "elapsed_ms": 0.0,  # the request is sent when it is due
                    "class": slo.slo_class,
                }
            }
        fields: dict[str, Any] = {"rid": rid, "stream": True, "sampling_params": sampling}
        if len(endpoints) > 1:
            fields["bootstrap_host"] = endpoints[0].bootstrap_host
            fields["bootstrap_port"] = endpoints[0].bootstrap_port
            fields["bootstrap_room"] = secrets.randbits(63)
        return b"".join((orjson.dumps(fields)[:-1], b',"input_ids":', prompt, b"}"))

    def headers(self, planned: PlannedRequest, send_slo: bool) -> dict[str, str]:
        return {}

    def stream(self, limit: int) -> TokenStream:
        return TokenStream(limit)


@dataclass(frozen=True, slots=True)
class CompletionsApi:
    """`/v1/completions` with token ids as the prompt. The SLO travels in headers.

    Attributes:
        model: name of the model at the server.
        slo_headers: key of SLO_HEADERS.
        key: bearer token; empty sends none.
        path: path of the endpoint.
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
        endpoints: Sequence[Endpoint],
        send_slo: bool,
    ) -> bytes:
        fields = {
            "model": self.model,
            "max_tokens": planned.request.output_tokens,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
            # The second option asks for the token count of each chunk. Servers that do not know it
            # report usage once, at the end.
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
