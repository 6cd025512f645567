"""What the service acknowledged, call by call, in a file that the audit holds against the database."""

from pathlib import Path
from typing import IO
from uuid import UUID

import orjson

NAME = "acknowledged.jsonl"


class Ledger:
    """Lines of JSON, each a call that was answered as done; `call` says which kind."""

    def __init__(self, directory: Path) -> None:
        self._file: IO[bytes] = (directory / NAME).open("wb", buffering=1 << 20)
        self.lines = 0

    def wrote(self, call: str, tenant_id: str, **fields: str | int | list[str] | list[int] | UUID | None) -> None:
        """Record one acknowledged call."""
        self._file.write(orjson.dumps({"call": call, "tenant": tenant_id, **fields}, option=orjson.OPT_APPEND_NEWLINE))
        self.lines += 1

    def close(self) -> None:
        """Write out what is buffered."""
        self._file.close()
