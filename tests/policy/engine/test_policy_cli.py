"""`remit policy`, as a policy author runs it."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from uuid import UUID

import pytest
from typer.testing import CliRunner, Result

from kernel.policy.bundle import CAPABILITIES, revision_of
from kernel.policy.contract import Decision, Reason
from service.policy_cli import app
from tests.policy.engine.conftest import write_rule
from tests.policy.engine.questions import spawn

DECISION_ID = UUID("01900000-0000-7000-8000-00000000000d")
TEST = """package orchestration.main_test

import data.orchestration.main

test_code if main.decision.reasons[0].code == "%s"
"""


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, opa_binary: Path) -> None:
    for name in ("REMIT_URL", "REMIT_TOKEN", "REMIT_TENANT_ID", "REMIT_POLICY_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("REMIT_OPA_BINARY", str(opa_binary))


def policy(*arguments: object, stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)


def question_file(directory: Path) -> Path:
    path = directory / "question.json"
    path.write_text(spawn().model_dump_json(exclude_none=True))
    return path


def test_tests_that_pass_show_what_they_cover(small_source: Path) -> None:
    (small_source / "orchestration/main/main_test.rego").write_text(TEST % "first")
    result = policy("test", "--policies", small_source)
    assert result.exit_code == 0, result.output
    assert "PASS: 1/1" in result.output
    assert "50 %" in result.output
    assert policy("test", "--policies", small_source, "--threshold", "100").exit_code == 1


def test_a_test_that_fails_fails_the_command(small_source: Path) -> None:
    (small_source / "orchestration/main/main_test.rego").write_text(TEST % "second")
    result = policy("test", "--policies", small_source)
    assert result.exit_code == 1
    assert "test_code: FAIL" in result.output


RULE = """# METADATA
# title: Main
# schemas:
#   - input: schema.input
package orchestration.main

# METADATA
# title: Decision
decision := {"allow": input.request.count > 0, "reasons": []}
"""


@pytest.fixture
def checked_source(small_source: Path) -> Path:
    (small_source / "schemas").mkdir()
    schema = {
        "type": "object",
        "properties": {"request": {"type": "object", "properties": {"count": {"type": "integer"}}}},
        "additionalProperties": False,
    }
    (small_source / "schemas/input.json").write_text(json.dumps(schema))
    (small_source / "orchestration/main/main.rego").write_text(RULE)
    return small_source


def test_policies_in_good_order_pass_the_check(checked_source: Path) -> None:
    result = policy("check", "--policies", checked_source)
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("before", "after", "finding"),
    [
        ("request.count", "request.cuont", "undefined ref: input.request.cuont"),
        ("decision := {", "decision :=    {", "opa fmt --write"),
        ("# METADATA\n# title: Decision\n", "", "decision has no METADATA"),
        ("# title: Main\n", "", "the package has no METADATA"),
        ("input.request.count > 0", "nowhere", "rego_unsafe_var_error"),
    ],
)
def test_a_blemish_is_found(checked_source: Path, before: str, after: str, finding: str) -> None:
    rule = checked_source / "orchestration/main/main.rego"
    assert before in RULE
    rule.write_text(RULE.replace(before, after))
    result = policy("check", "--policies", checked_source)
    assert result.exit_code == 1
    assert finding in result.output


def test_only_what_another_package_uses_needs_metadata(checked_source: Path) -> None:
    (checked_source / "orchestration/lib").mkdir()
    (checked_source / "orchestration/lib/numbers.rego").write_text(
        """# METADATA
# title: Numbers
package orchestration.lib

used(number) if _positive(number)

_positive(number) if number > 0
"""
    )
    assert policy("check", "--policies", checked_source).exit_code == 0
    (checked_source / "orchestration/main/main.rego").write_text(
        RULE.replace(
            "package orchestration.main\n", "package orchestration.main\n\nimport data.orchestration.lib\n"
        ).replace("input.request.count > 0", "lib.used(input.request.count)")
    )
    result = policy("check", "--policies", checked_source)
    assert result.exit_code == 1
    assert "numbers.rego: used has no METADATA" in result.output
    assert "_positive has no" not in result.output


@pytest.mark.parametrize("missing", ["schemas", CAPABILITIES])
def test_a_check_that_cannot_be_made_is_not_passed(checked_source: Path, missing: str) -> None:
    path = checked_source / missing
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    result = policy("check", "--policies", checked_source)
    assert result.exit_code == 1
    assert missing in result.output


def test_a_question_is_answered_with_its_reasons(small_source: Path, tmp_path: Path) -> None:
    result = policy("eval", "--policies", small_source, "--input", question_file(tmp_path))
    assert result.exit_code == 0, result.output
    assert "denied" in result.output
    assert "first" in result.output


def test_a_question_from_stdin_is_answered_as_json(small_source: Path) -> None:
    stdin = json.dumps({"input": json.loads(spawn().model_dump_json(exclude_none=True))})
    result = policy("eval", "--policies", small_source, "--input", "-", "--json", stdin=stdin)
    assert json.loads(result.stdout)["reasons"] == [{"code": "first", "message": "no"}]


@pytest.mark.parametrize("stdin", ["", "[]", "{}", '{"action": "spawn_run", "sruface": "x"}'])
def test_what_the_kernel_would_never_ask_is_refused(small_source: Path, stdin: str) -> None:
    result = policy("eval", "--policies", small_source, "--input", "-", stdin=stdin)
    assert result.exit_code == 2


@contextmanager
def service_with(record: dict[str, object] | None) -> Iterator[str]:
    """An HTTP server that has one record, for one token."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            authorized = self.headers["Authorization"] == "Bearer a-token"
            known = record is not None and self.path == f"/policies/decisions/{DECISION_ID}"
            status = 401 if not authorized else 200 if known else 404
            body = json.dumps(record if status == 200 else {"detail": "No such decision."}).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def record(source: Path, code: str) -> dict[str, object]:
    decision = Decision(allow=False, reasons=[Reason(code=code, message="no")])
    return {
        "decision_id": str(DECISION_ID),
        "input": spawn().model_dump(mode="json", exclude_none=True),
        "result": decision.model_dump(mode="json", exclude_none=True),
        "revision": revision_of(source),
        "created_at": "2026-11-22T12:00:00Z",
    }


def explain(url: str, source: Path, token: str = "a-token") -> Result:
    return policy("explain", DECISION_ID, "--url", url, "--token", token, "--policies", source)


def test_a_decision_that_would_be_made_again_is_explained(small_source: Path) -> None:
    with service_with(record(small_source, "first")) as url:
        result = explain(url, small_source)
    assert result.exit_code == 0, result.output
    assert "the same as the record's" in result.output
    assert "make the same decision" in result.output


def test_a_decision_that_would_come_out_otherwise_says_what_changed(small_source: Path) -> None:
    recorded = record(small_source, "first")
    write_rule(small_source, "second")
    with service_with(recorded) as url:
        result = explain(url, small_source)
    assert result.exit_code == 0, result.output
    assert "not those of the record's" in result.output
    assert "reason first" in result.output
    assert "reason second" in result.output


def test_a_decision_that_cannot_be_fetched_says_why(small_source: Path) -> None:
    with service_with(None) as url:
        assert "404. No such decision." in explain(url, small_source).output
        assert "401" in explain(url, small_source, token="another").output
    result = explain(url, small_source)
    assert result.exit_code == 2
    assert "could not be read" in result.output
