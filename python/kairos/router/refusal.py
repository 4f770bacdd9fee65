"""A request that the router itself answers with an error."""

from kairos.router.outcome import Outcome


class RefusedError(Exception):
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


def unauthorized(message: str, status: int = 401) -> RefusedError:
    """401 without a valid key; 403 where a valid key is not enough."""
    reason = "unauthorized" if status == 401 else "forbidden"
    return RefusedError(status, Outcome.UNAUTHORIZED, reason, message)


def invalid(status: int, reason: str, message: str) -> RefusedError:
    """The request itself is wrong: 400, 404, 405, 408, 413, 415, 431."""
    return RefusedError(status, Outcome.INVALID, reason, message)
