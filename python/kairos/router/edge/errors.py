"""A request that the router itself answers with an error."""

from kairos.router.queue.admission import AdmissionResult, Reason
from kairos.router.request.outcome import Outcome
from kairos.router.upstream.http_client import NO_FILES
from kairos.router.upstream.leg import LegError

_RETRY_UNAVAILABLE_S = 2.0


class RequestError(Exception):
    """Ends a request before, or instead of, an answer of a server.

    Attributes:
        status: HTTP status of the answer.
        outcome: what the request counts as.
        reason: one or few words with underscores, for logs, metrics and the client's programs.
        message: a sentence for the client; holds no secret and nothing of other clients.
        retry_after_s: when to try again, seconds; None where trying again is no use.
    """

    def __init__(
        self,
        status: int,
        outcome: Outcome,
        reason: str,
        message: str,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.outcome = outcome
        self.reason = reason
        self.message = message
        self.retry_after_s = retry_after_s


def unauthorized(message: str, status: int = 401) -> RequestError:
    """401 without a valid key; 403 where a valid key is not enough."""
    reason = "unauthorized" if status == 401 else "forbidden"
    return RequestError(status, Outcome.UNAUTHORIZED, reason, message)


def invalid(status: int, reason: str, message: str) -> RequestError:
    """The request itself is wrong: 400, 404, 405, 408, 413, 415, 431."""
    return RequestError(status, Outcome.INVALID, reason, message)


def unavailable(reason: str, message: str) -> RequestError:
    """No pair can take it now."""
    return RequestError(503, Outcome.UNAVAILABLE, reason, message, _RETRY_UNAVAILABLE_S)


def stopped() -> RequestError:
    """The router ended while the request was here."""
    return RequestError(503, Outcome.SHUT_DOWN, "shut_down", "the router stopped", 1.0)


def rejected(verdict: AdmissionResult, overload_status: int) -> RequestError:
    """The dispatcher did not queue it, for a reason that its verdict names."""
    reason = verdict.reason
    assert reason is not None
    if reason is Reason.TOO_LARGE:
        return invalid(400, reason.value, verdict.detail)
    if reason is Reason.NO_PAIR:
        return unavailable(reason.value, verdict.detail)
    outcome = {
        Reason.TENANT: Outcome.REJECTED_TENANT,
        Reason.INFEASIBLE: Outcome.REJECTED_INFEASIBLE,
    }.get(reason, Outcome.REJECTED_FULL)
    return RequestError(
        overload_status, outcome, reason.value, verdict.detail, verdict.retry_after_s
    )


def failed(error: LegError) -> RequestError:
    """Its last attempt failed, and not because a server refused the request."""
    if error.reason == "shut_down":
        return stopped()
    if error.reason == NO_FILES:
        return unavailable(error.reason, str(error))
    if error.late:
        return RequestError(504, Outcome.EXPIRED, error.reason, str(error))
    status = 503 if error.status == 503 else 502
    return RequestError(
        status, Outcome.ENGINE_FAILED, error.reason, str(error), _RETRY_UNAVAILABLE_S
    )
