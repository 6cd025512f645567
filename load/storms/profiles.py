"""Named settings of the service under a storm, and of the storm upon it."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Profile:
    """How large the service is, and how many come to it.

    `settings` are those of the service, for a storm that starts one. `users` send calls at the scenario's rates, each
    of them; `workers` claim runs and complete them; `in_flight` bounds what one user waits for at once, and an arrival
    beyond it is missed. A storm that misses more than the share `may_miss` of a kind of arrival was not as hard as it
    says, and fails.
    """

    settings: Mapping[str, str]
    users: int
    workers: int
    in_flight: int
    may_miss: float = 0.05


PROFILES: Mapping[str, Profile] = {
    "small": Profile(
        {"REMIT_DATABASE_POOL_SIZE": "5", "REMIT_SPAWN_LANES": "1"},
        users=2,
        workers=2,
        in_flight=32,
    ),
    # What the service has without any setting.
    "default": Profile({}, users=4, workers=4, in_flight=64),
    "large": Profile(
        {"REMIT_DATABASE_POOL_SIZE": "32", "REMIT_SPAWN_LANES": "4", "REMIT_TENANT_MAX_IN_FLIGHT": "1024"},
        users=12,
        workers=16,
        in_flight=128,
    ),
}
