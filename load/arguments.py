"""Numbers on the command line, with what is wrong about one in a line."""

import math
from argparse import ArgumentTypeError


def above_zero(text: str) -> float:
    """A number above 0."""
    return _number(text, above=0.0)


def no_less_than_zero(text: str) -> float:
    """Seconds, or none."""
    return _number(text, least=0.0)


def share(text: str) -> float:
    """A share of what there is."""
    return _number(text, least=0.0, most=1.0)


def at_least_one(text: str) -> int:
    """A count of something that must be there."""
    return _whole(text, least=1)


def not_negative(text: str) -> int:
    """A count."""
    return _whole(text, least=0)


def _number(text: str, *, above: float = -math.inf, least: float = -math.inf, most: float = math.inf) -> float:
    try:
        number = float(text)
    except ValueError:
        raise ArgumentTypeError(f"{text!r} is no number") from None
    if not math.isfinite(number):
        raise ArgumentTypeError(f"{text!r} is no number to count by")
    if number <= above:
        raise ArgumentTypeError(f"{text}, and has to be above {above:g}")
    if number < least or number > most:
        limit = f"{least:g} or more" if number < least else f"{most:g} at most"
        raise ArgumentTypeError(f"{text}, and has to be {limit}")
    return number


def _whole(text: str, *, least: int) -> int:
    try:
        number = int(text)
    except ValueError:
        raise ArgumentTypeError(f"{text!r} is no whole number") from None
    if number < least:
        raise ArgumentTypeError(f"{text}, and has to be {least} or more")
    return number
