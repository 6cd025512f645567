"""Errors of use are told in a line, before anything is made or started."""

from pathlib import Path

import pytest

from load import storm


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--seconds", "0"], "--seconds: 0, and has to be above 0"),
        (["--seconds", "-5"], "--seconds: -5, and has to be above 0"),
        (["--users", "0"], "--users: 0, and has to be 1 or more"),
        (["--users", "abc"], "--users: 'abc' is no whole number"),
        (["--may-miss", "3"], "--may-miss: 3, and has to be 1 at most"),
        (["--setting", "FOO"], "'FOO' is not of the form REMIT_X=Y"),
        (["--setting", "REMIT_NOPE=1"], "the service has no setting REMIT_NOPE"),
        (["--setting", "REMIT_SPAWN_LANE=1"], "near it: REMIT_SPAWN_LANES"),
        (["--setting", "REMIT_SPAWN_LANES=many"], "REMIT_SPAWN_LANES: Input should be a valid integer"),
        (["--bogus"], "unrecognized arguments: --bogus"),
        (["--host", "http://127.0.0.1:9", "--data-dir", "/nowhere"], "/nowhere/admin-token"),
    ],
)
def test_an_error_of_use_is_told_before_anything_is_made(
    more: list[str],
    told: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(storm, "running")
    directory = tmp_path / "report"
    with pytest.raises(SystemExit) as ended:
        storm.main(["soak", "--report-dir", str(directory), *more])
    assert ended.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("poe storm: error: ")]
    assert told in line
    assert not directory.exists()


def test_a_report_that_cannot_be_written_is_an_error_of_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.touch()
    with pytest.raises(SystemExit) as ended:
        storm.main(["soak", "--report-dir", str(in_the_way / "report")])
    assert ended.value.code == 2
    assert f"--report-dir {in_the_way / 'report'}: Not a directory" in capsys.readouterr().err


def test_the_settings_are_those_of_the_service() -> None:
    assert storm.a_setting("REMIT_SPAWN_LANES=4") == ("REMIT_SPAWN_LANES", "4")
    # One that has a name of its own in the environment.
    assert storm.a_setting("REMIT_POLICY_MAX_AGE=4.5") == ("REMIT_POLICY_MAX_AGE", "4.5")


def test_the_help_lists_the_options_of_a_storm(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        storm.main(["--help"])
    told = capsys.readouterr().out
    assert all(option in told for option in ("--in-flight", "--workers", "--tolerance", "--data-dir", "--database"))
