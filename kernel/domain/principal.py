"""Who makes a call, as its token says."""

from dataclasses import dataclass
from typing import Literal
from uuid import UUID

from kernel.domain.errors import ForbiddenError
from kernel.domain.scopes import ANY_SCOPE


@dataclass(frozen=True, slots=True)
class Principal:
    """The bearer of a token. `tenant_id` is the tenant that the call is for (an admin names it per call)."""

    kind: Literal["admin", "tenant", "run"]
    tenant_id: UUID | None
    scopes: frozenset[str]
    delegable_scopes: tuple[str, ...] = ()
    run_id: UUID | None = None
    root_run_id: UUID | None = None

    def has_scope(self, *wanted: str) -> bool:
        """Whether it holds one of the scopes."""
        return self.kind == "admin" or not self.scopes.isdisjoint(wanted)

    def check_scope(self, *wanted: str) -> None:
        """Check that the token holds one of the scopes.

        Raises:
            ForbiddenError: when it holds none of them.
        """
        if not self.has_scope(*wanted):
            raise ForbiddenError(f"the token lacks the scope {' or '.join(wanted)}", required=list(wanted))

    def check_is_no_run(self) -> None:
        """Check that the token is a tenant's or the admin's: what a run holds is for acting as that run.

        Raises:
            ForbiddenError: for a run's token.
        """
        if self.kind == "run":
            raise ForbiddenError("a run's token acts as its run; the tenant itself is changed with a tenant's token")

    def check_acts_as(self, run_id: UUID) -> None:
        """Check that the call may be made on behalf of a run: a run's token acts as that run only.

        Raises:
            ForbiddenError: when the token belongs to another run.
        """
        if self.kind == "run" and self.run_id != run_id:
            raise ForbiddenError(f"caller_run_id: this token acts as run {self.run_id} only, not as {run_id}")

    @property
    def tenant(self) -> UUID:
        """The tenant of a call that needs one.

        Raises:
            ForbiddenError: for an admin's call that names no tenant.
        """
        if self.tenant_id is None:
            raise ForbiddenError("X-Tenant-ID: an admin's call on a tenant's resources names the tenant in this header")
        return self.tenant_id


ADMIN = Principal(kind="admin", tenant_id=None, scopes=frozenset({ANY_SCOPE}), delegable_scopes=(ANY_SCOPE,))
