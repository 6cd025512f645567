"""`remit policy explain` reads what the service has on record."""

import asyncio
from pathlib import Path

from typer.testing import CliRunner

from service.policy_cli import app
from tests.kit import Kit, refused


async def test_a_denial_on_record_is_explained_and_decided_alike(kit: Kit, api_url: str, opa_binary: Path) -> None:
    root, _ = await kit.team(max_fanout=0)
    denied = refused(await kit.spawn(root, "a"), 403, "policy_denied")["decision_id"]
    arguments = ["explain", denied, "--url", api_url, "--token", kit.api.token, "--opa", str(opa_binary)]
    # In a thread, for the service answers in this one.
    result = await asyncio.to_thread(CliRunner().invoke, app, arguments)
    assert result.exit_code == 0, result.output
    assert "max_fanout_exceeded" in result.output
    assert "They make the same decision." in result.output
