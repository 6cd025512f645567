"""One real PostgreSQL and one real OPA for a whole test session, in a process that ends with it.

Run as `python -m tests.servers DIRECTORY`: prints one line of JSON when both answer, and stops them when its standard
input is closed.
"""

import asyncio
import json
import sys
from contextlib import AsyncExitStack
from pathlib import Path

import policies
from kernel.policy.bundle import revision_of
from service.embedded.opa import EmbeddedOpa, find_or_build_opa
from service.embedded.postgres import EmbeddedPostgres

MAX_CONNECTIONS = 200


def say(line: str) -> None:
    sys.stderr.write(f"test servers: {line}\n")


async def main(directory: Path) -> None:
    async with AsyncExitStack() as stack:
        postgres = EmbeddedPostgres(directory / "pg", progress=say, max_connections=MAX_CONNECTIONS)
        await postgres.start()
        stack.push_async_callback(postgres.stop)
        binary = await find_or_build_opa(progress=say)
        source = Path(policies.__file__).parent
        revision = revision_of(source)
        archive = directory / "bundle.tar.gz"
        # Unsigned: this OPA reads it from disk. The signed way from the service is what `remit up` is tested for.
        arguments = ["build", "--bundle", ".", "--revision", revision, "--output", str(archive)]
        building = await asyncio.create_subprocess_exec(binary, *arguments, cwd=source)
        assert await building.wait() == 0
        opa = EmbeddedOpa(binary, directory / "opa", bundle_path=archive, progress=say)
        await opa.start()
        stack.push_async_callback(opa.stop)
        sys.stdout.write(
            json.dumps(
                {
                    "postgres": postgres.dsn,
                    "postgres_log": str(directory / "pg"),
                    "opa_url": opa.url,
                    "opa_token": opa.token,
                    "opa_binary": str(binary),
                    "revision": revision,
                }
            )
            + "\n"
        )
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
