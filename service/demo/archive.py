"""The report as documents, what is asked of them, and what must be the answers. Knows nothing of Remit."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from pydantic import BaseModel, JsonValue

from service.demo.count import ODD_KINDS, FolderFacts, Survey

WHOLE = "in all"
_FOLDER = "folder "
# However names are written, documents of this many fit into a call.
_LONGEST_NAME = 120
_LONGEST_ID = 300
_ODD_NAMED = 5


class Document(BaseModel):
    """A piece of the report; its metadata are what a person would look at first."""

    document_id: str
    text: str
    metadata: dict[str, JsonValue]


@dataclass(frozen=True)
class Question:
    """A question about the report. `finds` says whether a document is part of the answer to `query`."""

    text: str
    query: str
    finds: Callable[[Mapping[str, JsonValue]], bool]


# Phrases, so that a file that happens to be called so is not found.
QUESTIONS: tuple[Question, ...] = (
    Question("Where is work left open?", '"work left open"', lambda told: bool(told.get("todos"))),
    Question("What could not be parsed?", '"left unparsed"', lambda told: bool(told.get("odd"))),
    Question("Which function is the longest?", '"longest function"', lambda told: "longest_function" in told),
)


def documents_of(survey: Survey) -> list[Document]:
    """The report: a document for each folder, and one for all of them."""
    return [*(_folder(facts) for facts in survey.folders), _whole(survey)]


def expected_answer(question: Question, survey: Survey) -> dict[str, dict[str, JsonValue]]:
    """The documents that answer a question, by id, with their metadata."""
    return {one.document_id: one.metadata for one in documents_of(survey) if question.finds(one.metadata)}


def name_of(document_id: str) -> str:
    """What a document is about, for a person."""
    return document_id.removeprefix(_FOLDER)


def wrong_answers(
    question: Question, found: Sequence[tuple[str, Mapping[str, JsonValue]]], most: int, survey: Survey
) -> Iterator[str]:
    """Where an answer is not what the survey says.

    Args:
        found: the documents of the answer with their metadata, at most `most`.
    """
    expected = expected_answer(question, survey)
    for name, told in found:
        if name not in expected:
            yield f"{question.text} {name_of(name)} is no answer to that"
        elif told != expected[name]:
            yield f"{question.text} The archive says {dict(told)} of {name_of(name)}, the survey {expected[name]}"
    missing = expected.keys() - {name for name, _ in found}
    if missing and len(found) < most:
        yield f"{question.text} The archive does not find {', '.join(sorted(map(name_of, missing)))}"


def _folder(facts: FolderFacts) -> Document:
    totals = facts.totals
    odd = sum(totals.kinds.get(kind, 0) for kind in ODD_KINDS)
    figures = (f"{totals.files} files", f"{totals.lines} lines", f"{totals.functions} functions")
    said = [f"{_short(facts.folder)}: {', '.join(figures)} and {totals.classes} classes."]
    if totals.todos:
        said.append(f"{totals.todos} TODOs: work left open.")
    if odd:
        names = ", ".join(_short(file.path) for file in facts.odd[:_ODD_NAMED])
        said.append(f"{odd} files left unparsed: {names}{' and more' if odd > _ODD_NAMED else ''}.")
    return Document(
        document_id=_id_of(facts.folder),
        text=" ".join(said),
        metadata={"files": totals.files, "lines": totals.lines, "todos": totals.todos, "odd": odd},
    )


def _whole(survey: Survey) -> Document:
    totals, longest = survey.total, survey.total.longest_function
    said = f"In all: {totals.files} files with {totals.lines} lines."
    metadata: dict[str, JsonValue] = {"files": totals.files, "lines": totals.lines}
    if longest is not None:
        place = f"{_short(longest.path)}:{longest.first_line}"
        said += f" The longest function, of {longest.lines} lines, is {_short(longest.name)} in {place}."
        metadata["longest_function"] = _short(longest.name)
    return Document(document_id=WHOLE, text=said, metadata=metadata)


def _id_of(folder: str) -> str:
    if len(folder) <= _LONGEST_ID:
        return f"{_FOLDER}{folder}"
    # A name of control characters is written threefold; what is cut off it still tells it from others.
    return f"{_FOLDER}{folder[:_LONGEST_ID]}…{hashlib.sha256(folder.encode()).hexdigest()}"


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"
