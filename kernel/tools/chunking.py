"""Cutting a text into overlapping pieces: at a paragraph, a line, a sentence or a word, whichever comes last enough."""

# Where a text is cut, the best first; a cut comes after the mark.
MARKS = (("\n\n",), ("\n",), (". ", "! ", "? ", "。", "！", "？"), (" ", "\t"))  # noqa: RUF001 - full-width on purpose

MIN_SIZE = 100
MAX_SIZE = 8_000
DEFAULT_SIZE = 1_000
DEFAULT_OVERLAP = 100
# An overlap of more than this part of the size would make many pieces of little new.
MAX_OVERLAP_PART = 4


def cut(text: str, *, size: int, overlap: int) -> list[str]:
    """The pieces of a text, in order, each of at most `size` characters.

    Nothing is lost: each piece begins where the one before it ends, or at most `overlap` characters earlier.

    Args:
        size: at least 4.
        overlap: at most a quarter of the size.
    """
    pieces: list[str] = []
    start = 0
    while len(text) - start > size:
        end = _end(text, start, size)
        pieces.append(text[start:end])
        start = _start(text, end, overlap)
    pieces.append(text[start:])
    return pieces


def _end(text: str, start: int, size: int) -> int:
    """Where a piece ends: after the last of the best marks in its second half, or where it is full."""
    middle, full = start + size // 2, start + size
    for marks in MARKS:
        ends = [found + len(mark) for mark in marks if (found := text.rfind(mark, middle, full)) >= 0]
        if ends:
            return max(ends)
    return full


def _start(text: str, end: int, overlap: int) -> int:
    """Where the next piece begins: with the first whole word of the overlap."""
    earliest = end - overlap
    for position in range(earliest, end):
        if text[position - 1].isspace() and not text[position].isspace():
            return position
    return end if text[end - 1].isspace() else earliest
