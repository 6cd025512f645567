"""What a slow run writes of itself, outside Remit: the evidence that it ran, and that it stopped."""

import time
from pathlib import Path
from typing import Literal

from pydantic import BaseModel


class Entry(BaseModel):
    """One line: `at_ns` is wall-clock time, `step` the steps done; a late completion has the answer it got."""

    what: Literal["step", "told", "late"]
    at_ns: int
    step: int
    status: int | None = None
    code: str | None = None


class Journal:
    """The journal of one run, appended to by its worker."""

    def __init__(self, folder: Path, run_id: str) -> None:
        self._path = folder / run_id
        self._step = 0

    def step(self) -> None:
        """One more step is done."""
        self._step += 1
        self._write(Entry(what="step", at_ns=time.time_ns(), step=self._step))

    def told(self) -> None:
        """A heartbeat said to stop."""
        self._write(Entry(what="told", at_ns=time.time_ns(), step=self._step))

    def late(self, status: int, code: str) -> None:
        """A completion after that was answered so."""
        self._write(Entry(what="late", at_ns=time.time_ns(), step=self._step, status=status, code=code))

    def _write(self, entry: Entry) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(entry.model_dump_json() + "\n")


def read_journals(folder: Path) -> dict[str, list[Entry]]:
    """Every journal so far, by run; a line that is still being written is left for the next reading."""
    return {file.name: _read(file) for file in folder.iterdir()}


def _read(file: Path) -> list[Entry]:
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    return [Entry.model_validate_json(line) for line in lines if line.endswith("\n")]
