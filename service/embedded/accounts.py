"""The system user that runs PostgreSQL when Remit itself runs as root."""

import os
import pwd
from dataclasses import dataclass
from pathlib import Path

from service.embedded.errors import DirectoryError, EmbeddedError

_PREFERRED = ("postgres", "nobody")


@dataclass(frozen=True)
class Account:
    """A user and its group."""

    name: str
    uid: int
    gid: int


def account_for(cluster: Path) -> Account | None:
    """Choose who runs the cluster: nobody but ourselves (None), unless we are root, as which PostgreSQL refuses to run.

    A cluster that exists stays with its owner.
    """
    owner = cluster.stat() if cluster.exists() else None
    if os.geteuid() != 0:
        if owner is not None and owner.st_uid != os.geteuid():
            raise DirectoryError(
                f"{cluster} belongs to user {owner.st_uid}, and Remit runs as user {os.geteuid()}. "
                "Run it as that user or as root, or give it another --data-dir."
            )
        return None
    if owner is not None and owner.st_uid != 0:
        return Account(_name_of(owner.st_uid), owner.st_uid, owner.st_gid)
    for name in _PREFERRED:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        account = Account(name, entry.pw_uid, entry.pw_gid)
        if owner is not None:
            raise DirectoryError(
                f"{cluster} belongs to root, and PostgreSQL does not run as root. "
                f"Was it copied? Give it back to its user: chown -R {name}: {cluster}"
            )
        return account
    raise EmbeddedError(
        f"PostgreSQL does not run as root, and there is no system user {' or '.join(_PREFERRED)}. "
        "Add one (useradd --system postgres), or run Remit as an ordinary user."
    )


def _name_of(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
