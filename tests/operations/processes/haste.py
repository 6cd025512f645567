"""The rules as they are, in quick motion: an hour of theirs is a minute, so that a test can wait for them."""

import re
from typing import Any

FASTER = 60
UNITS_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
DURATION = re.compile(r"\b(\d+)(ms|s|m|h|d)\b")
# How old a loop's last success may be, in seconds: less fast than the windows, because loops keep their own pace.
STALLED = ("> 60", "> 5")


def hasten(rules: dict[str, Any]) -> dict[str, Any]:
    """Every window, offset and `for` a sixtieth of what it is; nothing else is changed."""
    for group in rules["groups"]:
        group["interval"] = "1s"
        for rule in group["rules"]:
            rule["expr"] = _hastened(rule["expr"])
            if rule.get("alert") == "RemitReconcilerStalled":
                rule["expr"] = rule["expr"].replace(*STALLED, 1)
            if "for" in rule:
                rule["for"] = _hastened(rule["for"])
    return rules


def _hastened(text: str) -> str:
    return DURATION.sub(lambda found: f"{int(found[1]) * UNITS_MS[found[2]] // FASTER}ms", text)
