"""What `python -m load.audit` is told on its command line."""

from pathlib import Path

import pytest

from load import bench_decision
from load.audit.__main__ import main, url_of


def test_without_a_database_it_says_how_it_is_used(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 2
    assert "usage: python -m load.audit [-h] [--tenant TENANT] database" in capsys.readouterr().err


def test_a_tenant_is_named_by_its_id(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--tenant", "acme", "localhost"])
    assert "--tenant: invalid UUID value: 'acme'" in capsys.readouterr().err


def test_a_database_is_named_by_its_url_its_host_or_a_data_directory(tmp_path: Path) -> None:
    (tmp_path / "postgres").mkdir()
    assert url_of("postgresql+asyncpg://a@b/c") == "postgresql://a@b/c"
    assert url_of("db.example") == "postgresql://remit@/remit?host=db.example"
    assert url_of(str(tmp_path)) == f"postgresql://remit@/remit?host={tmp_path / 'postgres'}"


def test_a_database_that_is_not_there_is_told_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "nope")]) == 2
    told = capsys.readouterr().err
    assert str(tmp_path / "nope") in told
    assert told.count("\n") == 1


def test_policies_that_are_not_there_are_told_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        bench_decision.main([str(tmp_path / "nope")])
    assert ended.value.code == 2
    assert f"{tmp_path / 'nope'}: there is no such directory" in capsys.readouterr().err
