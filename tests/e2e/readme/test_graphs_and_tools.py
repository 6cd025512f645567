"""The README's sections on graphs and tools, typed as written after its first ten minutes."""

import asyncio
import json
import re
import sys
from pathlib import Path

from pydantic import JsonValue

from kernel.graph.compiler import compile_alone
from tests.e2e.readme.test_first_ten_minutes import REPOSITORY, commands, remit_up


def typed_in(section: str) -> str:
    text = (REPOSITORY / "README.md").read_text().split(f"\n## {section}\n")[1].split("\n## ")[0]
    return "\n".join(re.findall(r"```(?:ba)?sh\n(.*?)```", text, re.DOTALL))


def script(url: str) -> str:
    # What surrounds a command (uv, the directory of the clone) is this machine's own.
    replaced = {
        "http://127.0.0.1:8080": url,
        "python3 -m uv run remit": f"{sys.executable} -m service.cli",
        "graphs=tests": f"graphs={REPOSITORY}/tests",
    }
    whole = "\n".join([commands(), "echo GRAPHS", typed_in("Graphs"), "echo TOOLS", typed_in("Tools")])
    for written, here in replaced.items():
        assert written in whole
        whole = whole.replace(written, here)
    return whole


async def test_graphs_and_tools_work_as_they_are_typed(tmp_path: Path) -> None:
    async with remit_up(tmp_path / ".remit") as url:
        shell = await asyncio.create_subprocess_exec(
            *("bash", "-euo", "pipefail", "-c", script(url)),
            cwd=tmp_path,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await shell.communicate()
    assert shell.returncode == 0, out.decode() + err.decode()
    graphs, tools = out.decode().split("GRAPHS\n")[1].split("TOOLS\n")
    assert "the graph compiles" in graphs
    quorum, race, replan, denied = graphs.split("run 0")[1:]
    assert '"agreed": true' in quorum
    assert "reason=join_quorum_reached" in quorum
    assert '"found": true' in race
    assert '"reason": "join_first_success"' in race
    assert "node_id=retry" in replan
    assert "policy_deny" in denied
    assert "node_id=modest" in denied
    made, _, called, refused, *_, found, gone, later = [json.loads(line) for line in tools.splitlines()]
    assert made["slug"] == "ask-worker"
    assert called["status"] == "completed"
    assert refused["code"] == "invalid_request"
    assert [result["document_id"] for result in found["results"]] == ["cats"]
    assert gone == {"document_id": "cats", "chunks": 1}
    assert later["results"] == []


def test_the_graph_that_is_shown_is_the_example() -> None:
    text = (REPOSITORY / "README.md").read_text()
    (shown,) = re.findall(r"```json\n(\{\"spec_version\".*?)```", text, re.DOTALL)
    example = json.loads((REPOSITORY / "tests" / "cases" / "graphs" / "denied_spawn.json").read_text())
    assert digest_of(json.loads(shown)) == digest_of(example)


def digest_of(graph: JsonValue) -> str:
    compiled = compile_alone(graph)
    assert compiled.graph is not None
    return str(compiled.graph.document()["digest"])
