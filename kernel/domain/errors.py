"""What the kernel refuses, as exceptions; `code` is the word of the wire contract.

The message of each is written for the caller: it names the field or the run, the limit and what was observed.
HTTP statuses are chosen at the edge, in `service/errors.py`.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar
from uuid import UUID


class RemitError(Exception):
    """The base of all that Remit refuses on purpose."""

    code: ClassVar[str]

    def __init__(self, detail: str, **members: object) -> None:
        super().__init__(detail)
        self.detail = detail
        self.members: Mapping[str, object] = members


class InvalidRequestError(RemitError):
    """The request is malformed; `field` says where."""

    code = "invalid_request"

    def __init__(self, detail: str, *, field: str | None = None, **members: object) -> None:
        if field is not None:
            members["errors"] = [{"field": field, "message": detail}]
        super().__init__(detail, **members)


class UnauthenticatedError(RemitError):
    """No token, or one that does not verify."""

    code = "unauthenticated"


class ForbiddenError(RemitError):
    """The token is good and its authority does not reach this far."""

    code = "forbidden"


class NotFoundError(RemitError):
    """There is no such thing in this tenant; another tenant's things are answered alike."""

    code = "not_found"


class PolicyDeniedError(RemitError):
    """Policy refused; every reason is given, and the record can be looked up by `decision_id`."""

    code = "policy_denied"

    def __init__(self, detail: str, *, decision_id: UUID, reasons: Sequence[Mapping[str, object]]) -> None:
        super().__init__(detail, decision_id=str(decision_id), reasons=list(reasons))
        self.decision_id = decision_id
        self.reasons = reasons


class SpawnKeyConflictError(RemitError):
    """The idempotency key was used before with another payload; `fields` names what differs."""

    code = "spawn_key_conflict"

    def __init__(self, detail: str, *, fields: Sequence[str]) -> None:
        super().__init__(detail, fields=list(fields))


class CallerNotActiveError(RemitError):
    """The calling run has ended."""

    code = "caller_not_active"


class RunCancelledError(RemitError):
    """A fence covers the run."""

    code = "run_cancelled"


class IllegalTransitionError(RemitError):
    """The run's state machine has no such step."""

    code = "illegal_transition"


class LeaseLostError(RemitError):
    """The lease has expired, or another worker holds the run now."""

    code = "lease_lost"


class FactsChangedError(RemitError):
    """Policy, allowlist or a target changed between question and commit, three times over."""

    code = "facts_changed"


class ConflictError(RemitError):
    """The thing exists already; `field` says by what it is unique."""

    code = "conflict"


class PayloadTooLargeError(RemitError):
    """The body is larger than the service takes."""

    code = "payload_too_large"


class GraphInvalidError(RemitError):
    """The graph does not compile; `diagnostics` has every finding."""

    code = "graph_invalid"


class TenantSaturatedError(RemitError):
    """The tenant has as many requests in flight, or runs active, as it may."""

    code = "tenant_saturated"

    def __init__(self, detail: str, *, retry_after_s: int, **members: object) -> None:
        super().__init__(detail, **members)
        self.retry_after_s = retry_after_s


class PolicyUnavailableError(RemitError):
    """The policy engine gave no well-formed answer, so nothing is permitted."""

    code = "policy_unavailable"

    def __init__(self, detail: str, *, retry_after_s: int = 1, **members: object) -> None:
        super().__init__(detail, **members)
        self.retry_after_s = retry_after_s


class DatabaseUnavailableError(RemitError):
    """PostgreSQL does not answer."""

    code = "database_unavailable"

    def __init__(self, detail: str, *, retry_after_s: int = 1, **members: object) -> None:
        super().__init__(detail, **members)
        self.retry_after_s = retry_after_s


class LockTimeoutError(DatabaseUnavailableError):
    """PostgreSQL answers, but somebody has held a lock for longer than anybody waits."""
