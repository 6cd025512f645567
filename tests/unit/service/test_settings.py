"""Settings: one that is bad is told in a sentence."""

import pytest
import typer

from service.commands import read_settings


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        (
            "REMIT_DATABASE_URL",
            "mysql://localhost/remit",
            "must be a PostgreSQL URL, such as postgresql://user:password@host/database",
        ),
        ("REMIT_DATABASE_POOL_SIZE", "1", "Input should be greater than or equal to 2"),
    ],
)
def test_a_bad_setting_is_told_by_its_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, value: str, said: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(typer.Exit) as ended:
        read_settings(None)
    assert ended.value.exit_code == 2
    assert capsys.readouterr().err == f"remit: {name}: {said}\n"
