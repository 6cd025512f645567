"""What can go wrong with an embedded server; each message says what happened and how to mend it."""

from pathlib import Path


class EmbeddedError(Exception):
    """An embedded server cannot be started or kept running."""


class DirectoryInUseError(EmbeddedError):
    """Another process works in the directory."""

    def __init__(self, directory: Path, pid: int | None) -> None:
        """Name the directory, and the process in it where it is known."""
        holder = f"process {pid}" if pid is not None else "another process"
        super().__init__(
            f"{directory} is in use by {holder}. Stop that process first, or give this one another --data-dir."
        )
        self.directory = directory
        self.pid = pid


class DirectoryError(EmbeddedError):
    """A directory cannot be used as it is: not writable, owned by somebody else, not what it should be."""


class ClusterVersionError(EmbeddedError):
    """The data directory was made by another major version of PostgreSQL."""


class PostgresStartError(EmbeddedError):
    """PostgreSQL, or its initdb, ended instead of starting."""


class OpaStartError(EmbeddedError):
    """OPA ended instead of starting."""


class OpaVersionError(EmbeddedError):
    """The opa found is not of the version that the policies are written and tested for."""


class OpaBuildError(EmbeddedError):
    """No opa was found and none could be built."""
