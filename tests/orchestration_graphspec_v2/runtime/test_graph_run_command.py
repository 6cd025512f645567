"""`remit graph run`."""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from tests.graphs import graph, joined, node, play
from tests.kit import Kit


async def command(kit: Kit, api_url: str, *arguments: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "service.cli",
        "graph",
        "run",
        *arguments,
        "--url",
        api_url,
        "--token",
        kit.api.token,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


def written(tmp_path: Path, definition: dict[str, Any]) -> str:
    path = tmp_path / "survey.json"
    path.write_text(json.dumps(definition))
    return str(path)


async def test_a_graph_from_a_file_is_run_to_its_end(kit: Kit, api_url: str, tmp_path: Path) -> None:
    await kit.agent("worker")
    definition = graph(
        [
            node("fan", "spawn_group", targets=[{"target_agent_slug": "worker"}], scope_subset=["read"]),
            node("wait", "join"),
            node("end", "end", output={"said": "input.word", "ended": "nodes.wait.status"}),
        ],
        "start -> fan",
        "fan -> wait",
        *joined("wait"),
    )
    arguments = [written(tmp_path, definition), "--input", '{"word": "yes"}', "--scope", "read", "--allow", "worker"]
    (code, out, err), _ = await asyncio.gather(command(kit, api_url, *arguments), play(kit, "completed", within_s=60))
    assert code == 0, out + err
    assert '"said": "yes"' in out
    assert '"ended": "completed"' in out
    assert "spawn_decision" in out
    # The same file again changes the agent that is there.
    (code, out, err), _ = await asyncio.gather(command(kit, api_url, *arguments), play(kit, "failed", within_s=60))
    assert code == 0, out + err
    assert '"ended": "completed_with_errors"' in out


async def test_a_run_that_fails_ends_the_command_with_its_error(kit: Kit, api_url: str, tmp_path: Path) -> None:
    definition = graph(
        [node("bad", "transform", expressions={"x": "length(input.word)"})], "start -> bad", "bad -> end"
    )
    code, out, _ = await command(kit, api_url, written(tmp_path, definition))
    assert code == 1
    assert "expression_failed" in out


async def test_a_graph_that_does_not_compile_is_told_with_all_that_is_wrong(
    kit: Kit, api_url: str, tmp_path: Path
) -> None:
    code, _, err = await command(kit, api_url, written(tmp_path, graph([node("lost", "judge")], "start -> end")))
    assert code == 2
    assert "unreachable_node" in err
    assert "judge_without_source" in err
