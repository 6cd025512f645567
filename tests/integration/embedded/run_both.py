"""A parent of both embedded servers; says who they are and waits to be killed.

Arguments: the event loop (asyncio or uvloop), the data directory, the opa binary and the bundle.
"""

import asyncio
import json
import os
import sys
from pathlib import Path

import uvloop

from service.embedded.opa import EmbeddedOpa
from service.embedded.postgres import EmbeddedPostgres


def _tell(line: str) -> None:
    sys.stderr.write(f"{line}\n")


async def main(data_dir: Path, opa_binary: Path, bundle: Path) -> None:
    postgres = EmbeddedPostgres(data_dir, progress=_tell)
    await postgres.start()
    opa = EmbeddedOpa(opa_binary, data_dir, bundle_path=bundle)
    await opa.start()
    sys.stdout.write(json.dumps({"uid": os.getuid(), "postgres": postgres.pid, "opa": opa.pid, "dsn": postgres.dsn}))
    sys.stdout.write("\n")
    sys.stdout.flush()
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await opa.stop()
    await postgres.stop()


if __name__ == "__main__":
    run = uvloop.run if sys.argv[1] == "uvloop" else asyncio.run
    run(main(*(Path(word) for word in sys.argv[2:])))
