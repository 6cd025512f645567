"""One ranking out of several, by reciprocal rank fusion (Cormack, Clarke and Büttcher, SIGIR 2009)."""

from collections.abc import Hashable, Sequence
from typing import TypeVar

K = 60

Item = TypeVar("Item", bound=Hashable)


def fuse(rankings: Sequence[Sequence[Item]], *, k: int = K) -> list[tuple[Item, float]]:
    """Everything that is ranked anywhere, the best first, with its score: the sum of 1 / (k + rank), ranks from 1.

    Of equal scores, what was ranked first in an earlier ranking comes first.
    """
    scores: dict[Item, float] = {}
    for ranking in rankings:
        for rank, item in enumerate(ranking, start=1):
            scores[item] = scores.get(item, 0.0) + 1.0 / (k + rank)
    return sorted(scores.items(), key=lambda scored: -scored[1])
