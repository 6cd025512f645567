"""Building the policy bundle: which files are in it, what its revision is, and how it is signed.

The optimizer of `opa build` stays off: measured on these policies it makes an evaluation dearer at level 1 and changes
nothing at level 2.
"""

import asyncio
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Self

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

SCOPE = "write"
"""The scope in a bundle's signature; OPA must be configured to expect the same."""

ALGORITHM = "ES256"
ENTRYPOINTS = ("orchestration/main/decision", "orchestration/main/decisions")
CAPABILITIES = "capabilities.json"
# Of one test. OPA's own five seconds are passed on a machine that is busy, and good policies would be refused for it.
TEST_TIMEOUT = "60s"
MANIFEST = ".manifest"
_DATA_FILES = frozenset({"data.json", "data.yaml", "data.yml"})
_RUN_LIMIT_S = 60.0


class BundleError(Exception):
    """The sources do not make a bundle; the message is OPA's own text where OPA refused them."""


@dataclass(frozen=True, slots=True)
class SigningKey:
    """The key that signs bundles: ES256, because OPA verifies no EdDSA.

    `keyid` is derived from the public key, so a new key never passes under the name of an old one.
    """

    path: Path
    keyid: str
    public_pem: str

    @classmethod
    def load_or_create(cls, path: Path) -> Self:
        """Read the key in `path`, or make one there with mode 0600; of several processes at once, one makes it.

        Raises:
            BundleError: what is in the file is no P-256 private key without a password.
        """
        if not path.exists():
            _create_key(path)
        return cls.load(path)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read the key in `path`.

        Raises:
            BundleError: what is in the file is no P-256 private key without a password.
        """
        try:
            key = load_pem_private_key(path.read_bytes(), password=None)
        except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise BundleError(f"The bundle signing key {path} cannot be read: {error}") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
            raise BundleError(f"The bundle signing key {path} is no P-256 key; OPA verifies {ALGORITHM} here.")
        public = key.public_key()
        digest = hashlib.sha256(public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()
        pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
        return cls(path=path.absolute(), keyid=digest[:16], public_pem=pem)


@dataclass(frozen=True, slots=True)
class Sources:
    """What goes into a bundle, as it was read at one time: Rego without its tests, data, and the manifest."""

    files: Mapping[PurePosixPath, bytes]

    @classmethod
    def read(cls, source: Path) -> Self:
        """Read the manifest and, below its roots, the Rego and the data.

        Raises:
            BundleError: there is no manifest with roots, or a file cannot be read.
        """
        try:
            manifest = (source / MANIFEST).read_bytes()
            files = {PurePosixPath(MANIFEST): manifest}
            for root in _roots(manifest, source / MANIFEST):
                for path in sorted((source / root).rglob("*")):
                    name = PurePosixPath(path.relative_to(source).as_posix())
                    if _belongs(name) and path.is_file():
                        files[name] = path.read_bytes()
        except OSError as error:
            raise BundleError(f"The policy sources in {source} cannot be read: {error}") from error
        return cls(files)

    @property
    def revision(self) -> str:
        """A digest of names and contents: the same sources have the same revision everywhere."""
        digest = hashlib.sha256()
        for name, content in sorted(self.files.items()):
            digest.update(f"{name}\0{len(content)}\0".encode())
            digest.update(content)
        return digest.hexdigest()

    def write(self, directory: Path) -> None:
        """Lay the files out below a directory."""
        for name, content in self.files.items():
            path = directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


@dataclass(frozen=True, slots=True)
class Built:
    """A signed bundle. `etag` changes with the sources and with the key, not with each signature."""

    revision: str
    etag: str
    data: bytes


def revision_of(source: Path) -> str:
    """The revision that the bundle of these sources has.

    Raises:
        BundleError: the sources cannot be read.
    """
    return Sources.read(source).revision


async def build_bundle(opa: Path, source: Path, *, signing_key: SigningKey, capabilities: Path | None = None) -> Built:
    """Compile and sign the bundle of the sources in `source`.

    It is built from a snapshot, so that its revision is that of its content whoever edits meanwhile.

    Args:
        opa: the `opa` binary, by its absolute path.
        source: the directory with the manifest.
        signing_key: the key that the OPAs trust.
        capabilities: the file that says which built-ins may be used; `capabilities.json` in `source` by default.

    Raises:
        BundleError: the sources do not compile, or use a built-in that they must not.
    """
    allowed = _capabilities(source, capabilities)
    sources = await asyncio.to_thread(Sources.read, source)
    revision = sources.revision
    with tempfile.TemporaryDirectory(prefix="remit-bundle-") as temporary:
        workspace = _Workspace(Path(temporary))
        await asyncio.to_thread(workspace.fill, sources, signing_key)
        # From within, so that the names in the bundle are relative and the same on every machine.
        finished = await _run(
            opa, workspace.staged, "build", "--bundle", ".", "--output", str(workspace.bundle),
            "--capabilities", str(allowed), "--revision", revision,
            *(argument for entrypoint in ENTRYPOINTS for argument in ("--entrypoint", entrypoint)),
            "--signing-alg", ALGORITHM, "--signing-key", str(signing_key.path), "--claims-file", str(workspace.claims),
        )  # fmt: skip
        if finished.code != 0:
            raise BundleError(finished.text)
        data = await asyncio.to_thread(workspace.bundle.read_bytes)
    return Built(revision=revision, etag=f'"{revision}.{signing_key.keyid}"', data=data)


async def run_tests(opa: Path, source: Path, *, capabilities: Path | None = None) -> None:
    """Run the tests beside the sources.

    Raises:
        BundleError: one fails.
    """
    allowed = _capabilities(source, capabilities)
    finished = await _run(
        opa, source, "test", "--bundle", ".", "--timeout", TEST_TIMEOUT, "--capabilities", str(allowed)
    )
    if finished.code != 0:
        raise BundleError(finished.text)


@dataclass(frozen=True, slots=True)
class _Workspace:
    directory: Path

    @property
    def staged(self) -> Path:
        return self.directory / "sources"

    @property
    def claims(self) -> Path:
        return self.directory / "claims.json"

    @property
    def bundle(self) -> Path:
        return self.directory / "bundle.tar.gz"

    def fill(self, sources: Sources, signing_key: SigningKey) -> None:
        sources.write(self.staged)
        self.claims.write_text(json.dumps({"scope": SCOPE, "keyid": signing_key.keyid}))


@dataclass(frozen=True, slots=True)
class _Finished:
    code: int
    text: str


async def _run(opa: Path, cwd: Path, *arguments: str) -> _Finished:
    try:
        process = await asyncio.create_subprocess_exec(
            opa,
            *arguments,
            cwd=cwd,
            env={},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
    except OSError as error:
        raise BundleError(f"{opa} cannot be run: {error}") from error
    try:
        async with asyncio.timeout(_RUN_LIMIT_S):
            output, _ = await process.communicate()
    except TimeoutError as error:
        raise BundleError(f"opa {arguments[0]} did not end within {_RUN_LIMIT_S:g} s.") from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return _Finished(process.returncode, output.decode(errors="replace").strip())


def _roots(manifest: bytes, path: Path) -> list[str]:
    try:
        roots = json.loads(manifest)["roots"]
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{path} must be a JSON object with the roots of the bundle.") from error
    # OPA reads absent roots as "everything", and this bundle must not own what it does not need.
    if not isinstance(roots, list) or not roots or not all(isinstance(root, str) and root for root in roots):
        raise BundleError(f"{path} must name the roots of the bundle.")
    return roots


def _belongs(name: PurePosixPath) -> bool:
    if any(part.startswith(".") for part in name.parts):
        return False
    return name.name in _DATA_FILES or (name.suffix == ".rego" and not name.name.endswith("_test.rego"))


def _capabilities(source: Path, capabilities: Path | None) -> Path:
    path = (capabilities or source / CAPABILITIES).absolute()
    if not path.is_file():
        raise BundleError(f"There is no {path}: without it, a policy could use the network or the environment.")
    return path


def _create_key(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pem = ec.generate_private_key(ec.SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(pem)
            file.flush()
            os.fsync(file.fileno())
        # A link fails where the name is taken, so whoever comes second uses the first one's key.
        try:
            os.link(temporary, path)
        except FileExistsError:
            return
    finally:
        Path(temporary).unlink()
