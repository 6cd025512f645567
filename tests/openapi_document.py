"""The OpenAPI document as it is committed, and whether it is current.

python -m tests.openapi_document            # exit 1, with the difference, when it is not
python -m tests.openapi_document --write    # write it anew
"""

import asyncio
import difflib
import sys
import tempfile
from pathlib import Path

import orjson

from kernel.commands.spawning.combiner import SpawnCombiner
from kernel.commands.spawning.pipeline import SpawnPipeline
from kernel.commands.spawning.saturation import ActiveRuns
from kernel.policy.bundle import SigningKey
from kernel.policy.opa import OpaEngine, from_url
from kernel.store.engine import Database
from kernel.wakeups import Wakeups
from service.app import make_app
from service.dependencies import Services
from service.policy_delivery import BundlePublisher, OpaStatuses
from service.runtime import PolicyDelivery
from service.settings import Settings
from service.tokens import KeyRing, Tokens

COMMITTED = Path(__file__).parent.parent / "deploy" / "openapi.json"


def document() -> str:
    """The document of this code. The parts are made and not started: nothing is reached."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory)
        stopping = asyncio.Event()
        database = Database("postgresql+asyncpg:///unused")
        engine = OpaEngine(from_url("http://127.0.0.1:1"))
        pipeline = SpawnPipeline(database, engine)
        services = Services(
            settings=Settings(data_dir=path),
            database=database,
            engine=engine,
            tokens=Tokens(KeyRing(path / "keys"), admin_token="unused", run_token_ttl_s=1),
            pipeline=pipeline,
            combiner=SpawnCombiner(pipeline),
            wakeups=Wakeups(database, stopping),
            active_runs=ActiveRuns(database, default_bound=1_000_000),
            stopping=stopping,
        )
        publisher = BundlePublisher(path / "opa", path, SigningKey.load_or_create(path / "key.pem"))
        app = make_app(services, PolicyDelivery(publisher, OpaStatuses(), "unused"))
        return orjson.dumps(app.openapi(), option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS).decode() + "\n"


def main() -> int:
    current = document()
    if "--write" in sys.argv:
        COMMITTED.write_text(current, encoding="utf-8")
        return 0
    committed = COMMITTED.read_text(encoding="utf-8") if COMMITTED.exists() else ""
    lines = list(
        difflib.unified_diff(committed.splitlines(), current.splitlines(), "committed", "this code", lineterm="")
    )
    sys.stdout.write("\n".join(lines[:200]) + "\n" if lines else "deploy/openapi.json is current\n")
    return 1 if lines else 0


if __name__ == "__main__":
    raise SystemExit(main())
