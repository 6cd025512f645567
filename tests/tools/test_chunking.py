"""Cutting texts: nothing is lost, and nothing is cut in the middle where it need not be."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel.tools.chunking import cut

SIZES = st.integers(4, 60).flatmap(lambda size: st.tuples(st.just(size), st.integers(0, size // 4)))
TEXTS = st.text(alphabet=st.sampled_from("abc .!?\n\té。"), max_size=400) | st.text(max_size=400)


@given(TEXTS, SIZES)
def test_the_pieces_without_their_overlaps_are_the_text(text: str, sizes: tuple[int, int]) -> None:
    size, _ = sizes
    assert "".join(cut(text, size=size, overlap=0)) == text


@given(TEXTS, SIZES)
def test_every_word_is_in_a_piece_and_no_piece_is_too_large(text: str, sizes: tuple[int, int]) -> None:
    size, overlap = sizes
    pieces = cut(text, size=size, overlap=overlap)
    assert all(len(piece) <= size for piece in pieces)
    assert len(pieces) <= 1 + 4 * len(text) // size
    position = 0
    for piece in pieces:
        starts = [start for start in range(max(0, position - overlap), position + 1) if text.startswith(piece, start)]
        assert starts
        position = max(start + len(piece) for start in starts)
    assert position == len(text)


@given(TEXTS, SIZES)
def test_cutting_is_the_same_each_time(text: str, sizes: tuple[int, int]) -> None:
    size, overlap = sizes
    assert cut(text, size=size, overlap=overlap) == cut(text, size=size, overlap=overlap)


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("", [""]),
        ("short", ["short"]),
        ("one two three\n\nfour five six", ["one two three\n\n", "four five six"]),
        ("one two three\nfour five six", ["one two three\n", "four five six"]),
        ("one two three. four five six", ["one two three. ", "four five six"]),
        ("one two three four five six", ["one two three four ", "five six"]),
        ("x" * 45, ["x" * 20, "x" * 20, "x" * 5]),
    ],
)
def test_a_text_is_cut_at_the_best_place(text: str, pieces: list[str]) -> None:
    assert cut(text, size=20, overlap=0) == pieces


def test_a_piece_repeats_the_last_whole_words_of_the_one_before_it() -> None:
    text = " ".join(f"word{n:03}" for n in range(100))
    pieces = cut(text, size=100, overlap=20)
    for before, after in pairwise(pieces):
        assert after.startswith("word")
        repeated = after[: after.index(" ")]
        assert before.rstrip().split()[-2:][0] == repeated
