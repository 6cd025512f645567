"""What the comparison does with claims: whoever does not have what it has acknowledged has no figures."""

import pytest

from load.peers.verification import UnverifiedError, Verified, expect


def test_what_is_there_as_often_as_claimed_is_counted_over_the_runs() -> None:
    verified = Verified()
    expect("children", 1000, 1000, verified)
    expect("children", 500, 500.0, verified)
    assert verified.notes() == ["children: 1,500 counted"]


@pytest.mark.parametrize("found", [999, 1001])
def test_more_or_fewer_than_claimed_is_no_measurement(found: int) -> None:
    verified = Verified()
    with pytest.raises(UnverifiedError, match="1,000 were acknowledged"):
        expect("children", found, 1000, verified)
    assert verified.notes() == []
