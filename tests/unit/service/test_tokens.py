"""Tokens: who may have signed them, how long they last, and that a key can be followed by another."""

import stat
import time
from pathlib import Path
from uuid import uuid4

import jwt
import pytest

from kernel.domain.errors import UnauthenticatedError
from service.tokens import KeyRing, Tokens, read_or_make_secret


def make(directory: Path, admin: str = "admin-secret") -> Tokens:
    return Tokens(KeyRing(directory), admin_token=admin, run_token_ttl_s=60)


def test_a_tenants_token_says_what_was_signed(tmp_path: Path) -> None:
    tokens, tenant_id = make(tmp_path), uuid4()
    principal = tokens.verify(tokens.issue_tenant(tenant_id, ["runs.read"], ["a", "b"], 60).token)
    assert principal.kind == "tenant"
    assert principal.tenant_id == tenant_id
    assert principal.scopes == {"runs.read"}
    assert principal.delegable_scopes == ("a", "b")


def test_the_admins_token_is_opaque_and_compared_whole(tmp_path: Path) -> None:
    tokens = make(tmp_path)
    assert tokens.verify("admin-secret").kind == "admin"
    for other in ("admin-secre", "admin-secret ", "", "Ädmin"):
        with pytest.raises(UnauthenticatedError):
            tokens.verify(other)


@pytest.mark.parametrize("seen_before", [True, False])
def test_a_token_is_good_until_the_second_that_it_was_given_out_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seen_before: bool
) -> None:
    tokens = make(tmp_path)
    issued = tokens.issue_tenant(uuid4(), ["runs.read"], [], 10)
    if seen_before:
        tokens.verify(issued.token)
    end = issued.expires_at.timestamp()
    monkeypatch.setattr(time, "time", lambda: end)
    with pytest.raises(UnauthenticatedError, match="expired"):
        tokens.verify(issued.token)
    monkeypatch.setattr(time, "time", lambda: end - 1)
    assert tokens.verify(issued.token).kind == "tenant"


def test_a_token_ends_when_it_says_and_may_come_from_a_clock_that_is_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = make(tmp_path)
    issued = tokens.issue_tenant(uuid4(), ["runs.read"], [], 60)
    claims = jwt.decode(issued.token, options={"verify_signature": False})
    ahead = {**claims, "iat": int(time.time()) + 3}
    kid = jwt.get_unverified_header(issued.token)["kid"]
    tokens.verify(jwt.encode(ahead, KeyRing(tmp_path).signing_key, algorithm="EdDSA", headers={"kid": kid}))
    tokens.verify(issued.token)
    monkeypatch.setattr(time, "time", lambda: claims["exp"] - 0.001)
    tokens.verify(issued.token)
    # What was verified before, and what was not.
    monkeypatch.setattr(time, "time", issued.expires_at.timestamp)
    for verifying in (tokens, make(tmp_path)):
        with pytest.raises(UnauthenticatedError, match="expired"):
            verifying.verify(issued.token)


def test_another_services_token_is_refused(tmp_path: Path) -> None:
    ours, theirs = make(tmp_path / "ours"), make(tmp_path / "theirs")
    with pytest.raises(UnauthenticatedError):
        ours.verify(theirs.issue_tenant(uuid4(), ["runs.read"], [], 60).token)


def test_an_altered_or_unsigned_token_is_refused(tmp_path: Path) -> None:
    tokens = make(tmp_path)
    token = tokens.issue_tenant(uuid4(), ["runs.read"], [], 60).token
    head, body, signature = token.split(".")
    claims = jwt.decode(token, options={"verify_signature": False})
    kid = jwt.get_unverified_header(token)["kid"]
    unsigned = jwt.encode({**claims, "scp": ["policy.write"]}, "", algorithm="none", headers={"kid": kid})
    for forged in (f"{head}.{body}x.{signature}", f"{head}.{body}.", unsigned, f"{head}.{body}"):
        with pytest.raises(UnauthenticatedError):
            tokens.verify(forged)


def test_after_a_rotation_old_tokens_verify_and_new_ones_have_the_new_key(tmp_path: Path) -> None:
    before = make(tmp_path)
    old = before.issue_tenant(uuid4(), ["runs.read"], [], 60).token
    other = KeyRing(tmp_path / "other")
    (source,) = (tmp_path / "other").glob("*.pem")
    source.rename(tmp_path / "99999999999.pem")
    after = make(tmp_path)
    assert after.verify(old).kind == "tenant"
    assert (
        jwt.get_unverified_header(after.issue_tenant(uuid4(), ["runs.read"], [], 60).token)["kid"] == other.signing_kid
    )


def test_keys_and_secrets_are_readable_by_their_owner_only(tmp_path: Path) -> None:
    KeyRing(tmp_path / "keys")
    secret = read_or_make_secret(tmp_path / "secret", None)
    for path in (*(tmp_path / "keys").glob("*.pem"), tmp_path / "secret"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_or_make_secret(tmp_path / "secret", None) == secret
    assert read_or_make_secret(tmp_path / "secret", "given") == "given"


def test_a_runs_token_names_run_root_agent_depth_and_actors(tmp_path: Path) -> None:
    tokens = make(tmp_path)
    run_id, root, agent, actor = uuid4(), uuid4(), uuid4(), uuid4()
    issued = tokens.issue_run(
        tenant_id=uuid4(), run_id=run_id, root_run_id=root, agent_id=agent, scopes=["a"], depth=2, actors=(actor, root)
    )
    claims = jwt.decode(issued.token, options={"verify_signature": False})
    assert (claims["run"], claims["root"], claims["agt"], claims["dep"]) == (str(run_id), str(root), str(agent), 2)
    assert claims["act"] == {"sub": f"run:{actor}", "act": {"sub": f"run:{root}"}}
    principal = tokens.verify(issued.token)
    assert (principal.kind, principal.run_id, principal.root_run_id) == ("run", run_id, root)
