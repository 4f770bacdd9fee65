"""How a request can end. Each ends in exactly one of these."""

from enum import Enum


class Outcome(Enum):
    """The value is the label in metrics and in the access log."""

    COMPLETED = "completed"
    INVALID = "invalid"  # 400, 404, 405, 413, 431: nothing was queued
    UNAUTHORIZED = "unauthorized"  # 401, 403
    REJECTED_FULL = "rejected_full"  # 429: the bounds of the queue, or of bodies before it
    REJECTED_INFEASIBLE = "rejected_infeasible"  # 429: its SLO cannot be met now
    REJECTED_TENANT = "rejected_tenant"  # 429: the tenant's share is used up
    UNAVAILABLE = "unavailable"  # 503: no healthy pair, or draining
    EXPIRED = "expired"  # 504: waited or ran longer than its limit
    ENGINE_REFUSED = "engine_refused"  # 4xx of an engine, passed on
    ENGINE_FAILED = "engine_failed"  # 5xx, connection lost, garbage; retries are used up
    ROUTER_FAILED = "router_failed"  # 500: a fault of the router itself
    CLIENT_GONE = "client_gone"  # 499, logged only
    SHUT_DOWN = "shut_down"  # the router stopped before it ended
