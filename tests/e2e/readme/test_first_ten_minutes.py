"""The README's first ten minutes, typed as written."""

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent.parent.parent
START_TIMEOUT_S = 180


@asynccontextmanager
async def remit_up(data_dir: Path) -> AsyncIterator[str]:
    """The URL of a service of its own."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("REMIT_")}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "service.cli", "up", "--port", "0", "--data-dir", str(data_dir)),
        cwd=REPOSITORY,
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            async for line in process.stdout:
                if b"ready at" in line:
                    break
        yield json.loads((data_dir / "service.json").read_text())["url"]
    finally:
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0


def commands() -> str:
    """What the section tells to type, after starting the service."""
    section = (REPOSITORY / "README.md").read_text().split("## The first ten minutes")[1].split("\n## ")[0]
    blocks: list[str] = re.findall(r"```(?:ba)?sh\n(.*?)```", section, re.DOTALL)
    assert "remit up" in blocks[0]
    return "\n".join(blocks[1:])


async def test_the_first_ten_minutes_work_as_they_are_typed(tmp_path: Path) -> None:
    data_dir = tmp_path / ".remit"
    async with remit_up(data_dir) as url:
        script = commands().replace("http://127.0.0.1:8080", url)
        shell = await asyncio.create_subprocess_exec(
            *("bash", "-euo", "pipefail", "-c", script),
            cwd=tmp_path,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await shell.communicate()
    said = out.decode()
    assert shell.returncode == 0, err.decode()
    assert said.count('"idempotent":true') == 1
    refusals = [json.loads(line) for line in said.splitlines() if '"type":"urn:remit:problem:' in line]
    assert [problem["code"] for problem in refusals] == ["policy_denied", "run_cancelled"]
    assert refusals[0]["reasons"][0]["code"] == "scope_exceeds_caller"
    assert '"status":"completed"' in said
    assert '"state":"drained"' in said
