"""The log's line of a request says what was refused, and nothing of the next one's."""

import structlog

from tests.kit import Kit, done, refused


async def test_a_refusal_is_logged_by_its_code_and_the_next_request_without_it(kit: Kit) -> None:
    root, _ = await kit.team()
    merge = structlog.contextvars.merge_contextvars
    with structlog.testing.capture_logs(processors=[merge]) as logs:
        refused(await kit.api.get("/agents/runs/00000000-0000-7000-8000-000000000000"), 404, "not_found")
        done(await kit.api.get(f"/agents/runs/{root.run_id}"))
    lines = [line for line in logs if line["event"] == "request" and line["route"] == "/agents/runs/{run_id}"]
    assert [(line["status"], line.get("code")) for line in lines] == [(404, "not_found"), (200, None)]
