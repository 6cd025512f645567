"""Building a bundle with a real `opa`: what is in it, what it is called, who signed it, and what is refused."""

import io
import json
import stat
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from kernel.policy.bundle import CAPABILITIES, BundleError, SigningKey, build_bundle, revision_of, run_tests
from tests.policy.engine.conftest import POLICIES, write_rule

TEST = """package orchestration.main_test

import data.orchestration.main

test_denies if main.decision.allow == %s
"""


def contents(data: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]


async def test_a_bundle_has_the_rules_and_neither_tests_nor_strangers(
    opa_binary: Path, small_source: Path, signing_key: SigningKey
) -> None:
    (small_source / "orchestration/main/main_test.rego").write_text(TEST % "false")
    (small_source / "orchestration/main/notes.txt").write_text("not policy")
    (small_source / "orchestration/data.json").write_text('{"defaults": {"max_depth": 3}}')
    (small_source / "elsewhere.rego").write_text("package system.authz")
    built = await build_bundle(opa_binary, small_source, signing_key=signing_key)
    files = contents(built.data)
    assert set(files) == {"/orchestration/main/main.rego", "/data.json", "/.manifest", "/.signatures.json"}
    assert json.loads(files["/data.json"]) == {"orchestration": {"defaults": {"max_depth": 3}}}
    assert json.loads(files["/.manifest"])["revision"] == built.revision
    assert json.loads(files["/.manifest"])["roots"] == ["orchestration"]


async def test_the_signature_covers_the_files_and_names_scope_and_key(
    opa_binary: Path, small_source: Path, signing_key: SigningKey
) -> None:
    files = contents((await build_bundle(opa_binary, small_source, signing_key=signing_key)).data)
    token = json.loads(files["/.signatures.json"])["signatures"][0]
    claims = jwt.decode(token, signing_key.public_pem, algorithms=["ES256"])
    assert (claims["scope"], claims["keyid"]) == ("write", signing_key.keyid)
    assert {file["name"] for file in claims["files"]} == {"orchestration/main/main.rego", "data.json", ".manifest"}


async def test_the_tag_follows_sources_and_key_and_nothing_else(
    opa_binary: Path, small_source: Path, signing_key: SigningKey, tmp_path: Path
) -> None:
    first = await build_bundle(opa_binary, small_source, signing_key=signing_key)
    again = await build_bundle(opa_binary, small_source, signing_key=signing_key)
    assert (again.revision, again.etag) == (first.revision, first.etag)
    other_key = SigningKey.load_or_create(tmp_path / "other.pem")
    resigned = await build_bundle(opa_binary, small_source, signing_key=other_key)
    assert resigned.revision == first.revision
    assert resigned.etag != first.etag
    write_rule(small_source, "second")
    changed = await build_bundle(opa_binary, small_source, signing_key=signing_key)
    assert changed.revision != first.revision
    assert changed.etag != first.etag


def test_a_revision_depends_on_what_is_in_the_bundle_only(small_source: Path) -> None:
    before = revision_of(small_source)
    (small_source / "orchestration/main/main_test.rego").write_text(TEST % "false")
    (small_source / "orchestration/main/.main.rego.swp").write_text("an editor's")
    (small_source / "orchestration/README.md").write_text("not policy")
    assert revision_of(small_source) == before
    rule = small_source / "orchestration/main/main.rego"
    rule.rename(rule.with_name("renamed.rego"))
    assert revision_of(small_source) != before


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("decision := {", "rego_parse_error"),
        ("decision := nowhere", "rego_unsafe_var_error"),
        ('decision := http.send({"method": "GET", "url": "http://127.0.0.1"})', "http.send"),
        ("decision := opa.runtime()", "opa.runtime"),
        ('decision := net.lookup_ip_addr("localhost")', "net.lookup_ip_addr"),
    ],
)
async def test_a_rule_that_must_not_be_is_refused_in_the_words_of_opa(
    opa_binary: Path, small_source: Path, signing_key: SigningKey, rule: str, message: str
) -> None:
    forbid(small_source / CAPABILITIES)
    (small_source / "orchestration/main/main.rego").write_text(f"package orchestration.main\n\n{rule}\n")
    with pytest.raises(BundleError) as refusal:
        await build_bundle(opa_binary, small_source, signing_key=signing_key)
    assert message in str(refusal.value)
    assert "orchestration/main/main.rego:" in str(refusal.value)


def forbid(capabilities: Path) -> None:
    """Take the network and the environment out, whatever the file at hand permits."""
    document = json.loads(capabilities.read_text())
    forbidden = {"http.send", "opa.runtime", "net.lookup_ip_addr"}
    document["builtins"] = [builtin for builtin in document["builtins"] if builtin["name"] not in forbidden]
    capabilities.write_text(json.dumps(document))


@pytest.mark.parametrize("manifest", ["", "[]", "{}", '{"roots": []}', '{"roots": [""]}', '{"roots": "orchestration"}'])
def test_a_manifest_without_roots_is_refused(small_source: Path, manifest: str) -> None:
    (small_source / ".manifest").write_text(manifest)
    with pytest.raises(BundleError, match="roots"):
        revision_of(small_source)


async def test_sources_without_capabilities_are_refused(
    opa_binary: Path, small_source: Path, signing_key: SigningKey
) -> None:
    (small_source / CAPABILITIES).unlink()
    with pytest.raises(BundleError, match="network"):
        await build_bundle(opa_binary, small_source, signing_key=signing_key)


async def test_a_missing_binary_or_directory_says_which(small_source: Path, signing_key: SigningKey) -> None:
    with pytest.raises(BundleError, match="/nowhere/opa"):
        await build_bundle(Path("/nowhere/opa"), small_source, signing_key=signing_key)
    with pytest.raises(BundleError, match="/nowhere/policies"):
        revision_of(Path("/nowhere/policies"))


async def test_a_failing_test_is_told(opa_binary: Path, small_source: Path) -> None:
    tests = small_source / "orchestration/main/main_test.rego"
    tests.write_text(TEST % "false")
    await run_tests(opa_binary, small_source)
    tests.write_text(TEST % "true")
    with pytest.raises(BundleError, match="test_denies: FAIL"):
        await run_tests(opa_binary, small_source)


async def test_the_repositorys_policies_build(opa_binary: Path, signing_key: SigningKey) -> None:
    built = await build_bundle(opa_binary, POLICIES, signing_key=signing_key)
    assert built.revision == revision_of(POLICIES)
    assert not any("_test" in name for name in contents(built.data))


def test_a_signing_key_is_made_once_and_is_private(tmp_path: Path) -> None:
    path = tmp_path / "keys/bundle.pem"
    with ThreadPoolExecutor(8) as threads:
        keys = list(threads.map(lambda _: SigningKey.load_or_create(path), range(8)))
    assert len({key.keyid for key in keys}) == 1
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(path.parent.iterdir()) == [path]


def test_a_key_that_opa_cannot_use_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bundle.pem"
    for key in (ed25519.Ed25519PrivateKey.generate(), ec.generate_private_key(ec.SECP384R1())):
        path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        with pytest.raises(BundleError, match="P-256"):
            SigningKey.load_or_create(path)
    path.write_text("no key")
    with pytest.raises(BundleError, match="cannot be read"):
        SigningKey.load_or_create(path)
