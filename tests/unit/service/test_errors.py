"""Every refusal has an answer."""

from collections.abc import Iterator

import service.app  # noqa: F401 - brings along all that may be refused
from kernel.domain.errors import RemitError
from service.errors import STATUS_OF


def all_below(kind: type[RemitError]) -> Iterator[type[RemitError]]:
    for below in kind.__subclasses__():
        yield below
        yield from all_below(below)


def test_every_refusal_has_a_status() -> None:
    assert set(all_below(RemitError)) == set(STATUS_OF)
