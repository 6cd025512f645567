"""Clocks that lie."""

import sys
from datetime import datetime, timedelta, tzinfo
from typing import Self

import pytest


def set_back(monkeypatch: pytest.MonkeyPatch, hours: int) -> None:
    """Set this process's clock back, or with a negative number ahead, for the commands and what they stand on.

    The database's clock goes right. What checks tokens keeps its own, or nobody would be let in.
    """

    class Lying(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Self:
            told = datetime.now(tz) - timedelta(hours=hours)
            return cls.combine(told.date(), told.timetz())

    for name, module in list(sys.modules.items()):
        if name.startswith(("kernel.commands.", "kernel.store.", "kernel.domain.")) and hasattr(module, "datetime"):
            monkeypatch.setattr(module, "datetime", Lying)
