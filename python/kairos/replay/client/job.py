"""The job of a client: requests, target and limits."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import orjson

from kairos.errors import InputError
from kairos.replay.client.api import Api, GenerateApi
from kairos.replay.client.target import Target
from kairos.replay.plan.plan import PlannedRequest
from kairos.replay.plan.prompts import Prompts


@dataclass(frozen=True, slots=True)
class ClientConfig:
    """Limits and request format of a client.

    Attributes:
        send_slo: whether requests carry their SLO.
        timeout_s: limit of one request, seconds from when it was due.
        budget_s: limit of the run, seconds from the first arrival; requests left then are cut.
        api: format of requests and responses.

    Raises:
        InputError: a limit is out of range.
    """

    send_slo: bool = True
    timeout_s: float = 600.0
    budget_s: float = 3600.0
    api: Api = field(default_factory=GenerateApi)

    def __post_init__(self) -> None:
        for name, value in (("timeout-s", self.timeout_s), ("budget-s", self.budget_s)):
            if not 0.0 < value <= 1e6:
                raise InputError(f"--{name}: {value!r} is out of range, allowed are 0 to 1e6")


@dataclass(frozen=True, slots=True)
class WorkerJob:
    """One run of a client.

    Attributes:
        target: servers that receive the requests.
        prompts: source of the token ids.
        config: limits and request format.
        run_id: start of every rid, so that two runs on the same servers do not collide.
        requests: planned requests in order of arrival.
    """

    target: Target
    prompts: Prompts
    config: ClientConfig
    run_id: str
    requests: Sequence[PlannedRequest]

    def rid(self, planned: PlannedRequest) -> str:
        """Return the id of a request."""
        return f"{self.run_id}-{planned.index:07d}"

    def body(self, planned: PlannedRequest) -> bytes:
        """Return the body of a request; encoding takes about 2 ms."""
        ids = self.prompts.token_ids(planned.request, planned.index)
        return self.config.api.body(
            planned,
            self.rid(planned),
            orjson.dumps(ids, option=orjson.OPT_SERIALIZE_NUMPY),
            self.target.endpoints(planned.index),
            self.config.send_slo,
        )
