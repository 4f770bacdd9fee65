"""The SLO of one request on its way from the HTTP process to the scheduler."""

from collections.abc import Mapping
from dataclasses import dataclass

from kairos.errors import InputError
from kairos.slo import Slo, SloClasses, SloRequest, from_mapping

# Key in `custom_params`, the one field of a request that SGLang carries to both servers untouched.
KEY = "kairos"
# An arrival further back than this is not of this host's clock, seconds.
MAX_WAIT_S = 3600.0


@dataclass(frozen=True, slots=True)
class RequestSlo:
    """An SLO with the clock it runs on.

    Attributes:
        slo: the objectives.
        arrival_s: arrival at the first Kairos process, CLOCK_MONOTONIC seconds of this host.
    """

    slo: Slo
    arrival_s: float

    @property
    def ttft_deadline_s(self) -> float:
        """When the first token is due, CLOCK_MONOTONIC seconds of this host."""
        return self.arrival_s + self.slo.ttft_s

    def wire(self) -> dict[str, float | str]:
        """Return the form in custom_params between the processes of one host."""
        return {
            **self.slo.objectives,
            "class": self.slo.slo_class,
            "arrival_s": self.arrival_s,
        }


def resolve(requested: SloRequest, classes: SloClasses, now: float) -> RequestSlo:
    """Complete a requested SLO and start its clock, `requested.elapsed_ms` ago.

    Args:
        requested: the fields that the client set.
        classes: fill in the others.
        now: CLOCK_MONOTONIC seconds.
    """
    return RequestSlo(classes.resolve(requested), now - requested.elapsed_ms / 1e3)


def requested_in(custom_params: object, where: str) -> SloRequest:
    """Read the SLO in the custom_params of a client.

    Args:
        custom_params: as received.
        where: names the field in messages.

    Raises:
        InputError: malformed.
    """
    if custom_params is None:
        return SloRequest()
    if not isinstance(custom_params, Mapping):
        raise InputError(f"{where}: {type(custom_params).__name__} is not an object")
    fields = custom_params.get(KEY)
    return SloRequest() if fields is None else from_mapping(fields, f"{where}.{KEY}")


def of_request(custom_params: object, classes: SloClasses, now: float) -> RequestSlo:
    """Read the SLO of a request that reached the scheduler.

    Requests that did not come through the HTTP hooks (health checks, `Engine.generate`) start their
    clock now.

    Args:
        custom_params: of the request's sampling parameters.
        classes: fill in missing fields.
        now: CLOCK_MONOTONIC seconds.

    Raises:
        InputError: malformed, which only `Engine.generate` can produce.
    """
    fields = custom_params.get(KEY) if isinstance(custom_params, Mapping) else None
    if fields is None:
        return RequestSlo(classes.default, now)
    if not isinstance(fields, Mapping):
        raise InputError(f"custom_params.{KEY}: {type(fields).__name__} is not an object")
    rest = {name: value for name, value in fields.items() if name != "arrival_s"}
    request = resolve(from_mapping(rest, f"custom_params.{KEY}"), classes, now)
    arrival = fields.get("arrival_s")
    # An arrival in the future, long past, or not a number is of another host's clock.
    if isinstance(arrival, float) and now - MAX_WAIT_S <= arrival <= now:
        return RequestSlo(request.slo, arrival)
    return request
