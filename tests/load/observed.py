"""What the conductor of a storm saw, for those who judge it: here, nothing yet."""

from typing import Any

NOTHING_SEEN: dict[str, Any] = {
    "profile": "default",
    "users": 1,
    "workers": 0,
    "in_flight": 1,
    "may_miss": 0.05,
    "seconds": 1,
    "pace": 1,
    "scale": 1,
    "service": {},
}
