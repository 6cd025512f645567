"""The report as documents: what is asked of them has one right answer, by the figures."""

from service.demo.archive import QUESTIONS, WHOLE, documents_of, expected_answer, wrong_answers
from service.demo.count import FolderFacts, Survey, analyse_source

OPEN, UNPARSED, LONGEST = QUESTIONS

SURVEY = Survey.of(
    [
        FolderFacts.of("neat", [analyse_source("neat/a.py", b"def f():\n    return 1\n")]),
        FolderFacts.of("messy", [analyse_source("messy/a.py", b"# TODO\n"), analyse_source("messy/b.py", b"def f(:")]),
    ]
)


def test_every_folder_is_a_document_and_the_whole_is_one() -> None:
    names = [document.document_id for document in documents_of(SURVEY)]
    assert names == ["folder messy", "folder neat", WHOLE]
    # A folder of that name is not taken for the whole.
    assert WHOLE not in [d.document_id for d in documents_of(Survey.of([FolderFacts.of(WHOLE, [])]))][:1]


def test_a_phrase_stands_in_the_documents_that_answer_its_question_and_in_no_others() -> None:
    for question in QUESTIONS:
        phrase = question.query.strip('"')
        holding = {one.document_id for one in documents_of(SURVEY) if phrase in one.text}
        assert holding == expected_answer(question, SURVEY).keys()
    assert expected_answer(OPEN, SURVEY).keys() == expected_answer(UNPARSED, SURVEY).keys() == {"folder messy"}
    assert expected_answer(LONGEST, SURVEY).keys() == {WHOLE}


def test_what_is_missing_surplus_or_otherwise_than_the_figures_is_told() -> None:
    right = list(expected_answer(OPEN, SURVEY).items())
    assert list(wrong_answers(OPEN, right, 100, SURVEY)) == []
    assert "does not find messy" in next(wrong_answers(OPEN, [], 100, SURVEY))
    assert "neat is no answer" in next(wrong_answers(OPEN, [("folder neat", {})], 100, SURVEY))
    assert "the survey {" in next(wrong_answers(OPEN, [("folder messy", {"todos": 7})], 100, SURVEY))
    # No more than was wanted can be found.
    assert list(wrong_answers(OPEN, [], 0, SURVEY)) == []


def test_names_of_any_length_leave_a_document_small() -> None:
    name = "x" * 5_000
    facts = FolderFacts.of(name, [analyse_source(f"{name}/{name}{n}.py", b"def f(:") for n in range(50)])
    long = analyse_source(f"{name}.py", f"def {name}(): ...\n".encode())
    survey = Survey.of([facts, FolderFacts.of("other", [long])])
    assert all(len(document.text) < 1_500 for document in documents_of(survey))


def test_folders_of_any_name_are_documents_of_their_own() -> None:
    names = ["x" * 700, "x" * 701, "x" * 300]
    ids = [document.document_id for document in documents_of(Survey.of(FolderFacts.of(name, []) for name in names))]
    assert len(set(ids)) == len(ids)
    assert max(map(len, ids)) <= 500
