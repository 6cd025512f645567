"""Tokens: EdDSA JWTs signed with the kernel's own key, and the admin's opaque one.

A token says who asks; what a run may do is read from the database at each call, and the token never adds to it.
"""

import hmac
import math
import os
import secrets
import stat
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from uuid import UUID

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from kernel.domain.errors import UnauthenticatedError
from kernel.domain.principal import ADMIN, Principal

ISSUER = "remit"
ALGORITHM = "EdDSA"
MAX_CACHED = 20_000
# Clocks of API processes may differ by so much: a token may seem to be signed in the future. None outlives its end.
LEEWAY_S = 5


class TokenKeyError(Exception):
    """A key that was given for tokens is none."""


class KeyRing:
    """The keys that sign and verify: the newest signs, all verify, each is known by its `kid`.

    Args:
        directory: holds one PEM a key, mode 0600; rotation puts a new file there, and takes old ones away once the
            tokens that they signed have expired.
    """

    def __init__(self, directory: Path) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        paths = sorted(directory.glob("*.pem"))
        if not paths:
            paths = [_generate(directory)]
        self._hold(paths)

    @classmethod
    def mounted(cls, path: Path) -> "KeyRing":
        """The ring of the key in a file, or of those in a directory, as production mounts them: none is ever made.

        Raises:
            TokenKeyError: when there is no key.
        """
        paths = sorted(path.glob("*.pem")) if path.is_dir() else [path]
        if not paths:
            raise TokenKeyError(f"REMIT_TOKEN_KEY_FILE: there is no *.pem in {path}")
        ring = cls.__new__(cls)
        ring._hold(paths)  # noqa: SLF001 - its own class
        return ring

    def _hold(self, paths: Sequence[Path]) -> None:
        self._verifying: dict[str, Ed25519PublicKey] = {}
        for path in paths:
            private = _load(path)
            self.signing_kid, self.signing_key = _kid(private.public_key()), private
            self._verifying[self.signing_kid] = private.public_key()

    def verifying_key(self, kid: str) -> Ed25519PublicKey | None:
        """The public key of a `kid`, if it is one of ours."""
        return self._verifying.get(kid)


@dataclass(frozen=True, slots=True)
class Issued:
    """A token that was just signed."""

    token: str
    expires_at: datetime


class Tokens:
    """Issues and verifies tokens."""

    def __init__(self, keys: KeyRing, *, admin_token: str, run_token_ttl_s: int) -> None:
        self._keys = keys
        self._admin = admin_token.encode()
        self._run_ttl = timedelta(seconds=run_token_ttl_s)
        self._verified: OrderedDict[bytes, tuple[Principal, float]] = OrderedDict()

    def issue_tenant(
        self, tenant_id: UUID, scopes: Sequence[str], delegable_scopes: Sequence[str], expires_in_s: int
    ) -> Issued:
        """A tenant's token."""
        return self._sign(
            {"sub": f"tenant:{tenant_id}", "ten": str(tenant_id), "scp": list(scopes), "dlg": list(delegable_scopes)},
            timedelta(seconds=expires_in_s),
        )

    def issue_run(
        self,
        *,
        tenant_id: UUID,
        run_id: UUID,
        root_run_id: UUID,
        agent_id: UUID,
        scopes: Sequence[str],
        depth: int,
        actors: Sequence[UUID] = (),
    ) -> Issued:
        """A run's token. `actors` are the runs above it, nearest first, for the record (RFC 8693, `act`)."""
        act: dict[str, object] | None = None
        for actor in reversed(actors):
            act = {"sub": f"run:{actor}"} | ({"act": act} if act else {})
        claims: dict[str, object] = {
            "sub": f"run:{run_id}",
            "ten": str(tenant_id),
            "run": str(run_id),
            "root": str(root_run_id),
            "agt": str(agent_id),
            "scp": list(scopes),
            "dep": depth,
        }
        if act:
            claims["act"] = act
        return self._sign(claims, self._run_ttl)

    def verify(self, token: str) -> Principal:
        """The principal of a token.

        Raises:
            UnauthenticatedError: when it is not ours, altered, or expired.
        """
        if hmac.compare_digest(token.encode(), self._admin):
            return ADMIN
        key = sha256(token.encode()).digest()
        cached = self._verified.get(key)
        if cached is not None and cached[1] > time.time():
            return cached[0]
        principal, expires = self._decode(token)
        self._verified[key] = (principal, expires)
        if len(self._verified) > MAX_CACHED:
            self._verified.popitem(last=False)
        return principal

    def _sign(self, claims: dict[str, object], lifetime: timedelta) -> Issued:
        now = datetime.now(UTC)
        # In whole seconds, and no shorter than was asked for.
        expires_at = datetime.fromtimestamp(math.ceil((now + lifetime).timestamp()), UTC)
        token = jwt.encode(
            {"iss": ISSUER, "iat": int(now.timestamp()), "exp": int(expires_at.timestamp()), **claims},
            self._keys.signing_key,
            algorithm=ALGORITHM,
            headers={"kid": self._keys.signing_kid},
        )
        return Issued(token, expires_at)

    def _decode(self, token: str) -> tuple[Principal, float]:
        try:
            kid = jwt.get_unverified_header(token).get("kid", "")
            key = self._keys.verifying_key(kid)
            if key is None:
                raise UnauthenticatedError("Authorization: the token was not signed by this service")
            claims = jwt.decode(
                token,
                key,
                algorithms=[ALGORITHM],
                issuer=ISSUER,
                leeway=LEEWAY_S,
                options={"require": ["exp", "iat", "sub", "ten", "scp"], "verify_exp": False},
            )
            expires = float(claims["exp"])
            run_id = claims.get("run")
            principal = Principal(
                kind="run" if run_id else "tenant",
                tenant_id=UUID(claims["ten"]),
                scopes=frozenset(claims["scp"]),
                delegable_scopes=tuple(claims.get("dlg", ())),
                run_id=UUID(run_id) if run_id else None,
                root_run_id=UUID(claims["root"]) if run_id else None,
            )
        except (jwt.PyJWTError, ValueError, KeyError, TypeError) as error:
            raise UnauthenticatedError("Authorization: the token does not verify") from error
        if expires <= time.time():
            raise UnauthenticatedError("Authorization: the token has expired")
        return principal, expires


def read_or_make_secret(path: Path, given: str | None) -> str:
    """A secret: the one given, else the one in the file, else a new one that is written there with mode 0600."""
    if given is not None:
        return given
    if path.exists():
        return path.read_text(encoding="ascii").strip()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    value = secrets.token_urlsafe(32)
    write_private(path, (value + "\n").encode())
    return value


def write_private(path: Path, content: bytes) -> None:
    """Write a file that only its owner may read, whole or not at all."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, stat.S_IRUSR | stat.S_IWUSR)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    draft.rename(path)


def _generate(directory: Path) -> Path:
    private = Ed25519PrivateKey.generate()
    pem = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path = directory / f"{int(time.time())}.pem"
    write_private(path, pem)
    return path


def _load(path: Path) -> Ed25519PrivateKey:
    try:
        private = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise TokenKeyError(f"the token key {path} cannot be read: {error}") from error
    if not isinstance(private, Ed25519PrivateKey):
        raise TokenKeyError(f"the token key {path} is no Ed25519 key")
    return private


def _kid(public: Ed25519PublicKey) -> str:
    raw = public.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return sha256(raw).hexdigest()[:16]
