"""One process per directory."""

import errno
import fcntl
import os
from contextlib import suppress
from pathlib import Path

from service.embedded.errors import DirectoryError, DirectoryInUseError

UNWRITABLE = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR})


class DirectoryLock:
    """Held by the kernel for this process, so it is gone the moment the process is, whatever ended it."""

    def __init__(self, directory: Path) -> None:
        """The lock is the file `lock` in the directory; it stays there, with the holder's process id in it."""
        self._directory = directory
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Take the lock.

        Raises:
            DirectoryInUseError: somebody has it.
            DirectoryError: the directory cannot be written.
        """
        path = self._directory / "lock"
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise DirectoryError(not_writable(self._directory, error)) from error
        try:
            # flock belongs to the open file, not to the process: two users within one process exclude each other too.
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        except BlockingIOError:
            holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
            os.close(descriptor)
            raise DirectoryInUseError(self._directory, int(holder) if holder.isdecimal() else None) from None
        except OSError as error:
            os.close(descriptor)
            raise DirectoryError(not_writable(self._directory, error)) from error
        self._descriptor = descriptor

    def release(self) -> None:
        """Give the lock back; does nothing where it is not held."""
        if self._descriptor is not None:
            with suppress(OSError):
                os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)
            self._descriptor = None


def make_private_directory(directory: Path) -> None:
    """Make the directory, and those above it, where they are missing; its own mode is 0700.

    Raises:
        DirectoryError: it cannot be made.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise DirectoryError(not_writable(directory, error)) from error


def not_writable(directory: Path, error: OSError) -> str:
    """Say that a directory cannot be written, and what to do."""
    return (
        f"Cannot write in {directory}: {error.strerror or error}. "
        f"Make it writable for user {os.geteuid()}, or give another --data-dir."
    )
