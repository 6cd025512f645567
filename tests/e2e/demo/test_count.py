import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.demo.count import (
    MAX_BYTES,
    FileFacts,
    FileKind,
    FolderFacts,
    Survey,
    Totals,
    analyse_file,
    analyse_source,
    count_directory,
    disk_name,
    list_files,
    list_folders,
    wire_name,
)
from tests.e2e.demo.odd_directory import FIGURES, ODD, write_odd_directory

SOURCES = [b"", b"x = 1\n", b"def f(): ...\n", b"def g(:", b"\xff"]


@pytest.fixture(scope="module")
def odd_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_odd_directory(tmp_path_factory.mktemp("odd"))


def test_the_figures_of_odd_files_are_those_a_person_counts(odd_directory: Path) -> None:
    survey = count_directory(odd_directory)
    figures = {
        f.folder: (
            f.totals.files,
            f.totals.lines,
            f.totals.code_lines,
            f.totals.functions,
            f.totals.classes,
            f.totals.todos,
        )
        for f in survey.folders
    }
    assert figures == FIGURES
    assert {file.path: file.kind for folder in survey.folders for file in folder.odd} == ODD
    assert survey.total.files == sum(figures[0] for figures in FIGURES.values())


def test_the_longest_function_is_named_with_its_place(odd_directory: Path) -> None:
    longest = count_directory(odd_directory).total.longest_function
    assert longest is not None
    assert (longest.name, longest.lines, longest.path, longest.first_line) == (
        "leaf",
        4,
        "app/nested/deeper/leaf.py",
        1,
    )


def test_folders_are_counted_as_their_files_are_listed(odd_directory: Path) -> None:
    for folder, count in list_folders(odd_directory).items():
        assert len(list(list_files(odd_directory, folder))) == count


def test_a_file_outside_the_directory_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    (tmp_path / "secret.txt").write_text("secret\n")
    (tmp_path / "inside" / "link").symlink_to("..")
    for path in ("../secret.txt", "link/secret.txt", str(tmp_path / "secret.txt")):
        facts = analyse_file(tmp_path / "inside", path)
        assert (facts.kind, facts.lines) == (FileKind.UNREADABLE, 0)


def test_a_file_that_is_gone_or_too_large_is_reported_as_such(tmp_path: Path) -> None:
    assert analyse_file(tmp_path, "gone.py").kind is FileKind.UNREADABLE
    with (tmp_path / "sparse.py").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    assert analyse_file(tmp_path, "sparse.py").kind is FileKind.OVERSIZED


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_reported_as_such(tmp_path: Path) -> None:
    (tmp_path / "closed.py").touch(mode=0)
    assert analyse_file(tmp_path, "closed.py").kind is FileKind.UNREADABLE


@given(name=st.binary(min_size=1, max_size=20).filter(lambda name: b"\0" not in name))
def test_any_file_name_survives_the_wire(name: bytes) -> None:
    path = os.fsdecode(name)
    wire = wire_name(path)
    assert disk_name(wire) == path
    assert wire.isprintable()
    wire.encode("utf-8")


@given(
    source=st.one_of(st.binary(max_size=200), st.text(max_size=200).map(lambda text: text.encode("utf-8", "replace")))
)
def test_no_source_breaks_the_analysis_or_its_way_over_the_wire(source: bytes) -> None:
    facts = analyse_source("any.py", source)
    assert FileFacts.model_validate_json(facts.model_dump_json()) == facts


@given(
    sources=st.lists(st.sampled_from([b"", b"x = 1\n", b"def f(): ...\n", b"def g(:", b"\xff"]), max_size=8),
    data=st.data(),
)
def test_it_does_not_matter_in_which_order_files_are_added_up(sources: list[bytes], data: st.DataObject) -> None:
    files = [analyse_source(f"{number}.py", source) for number, source in enumerate(sources)]
    shuffled = data.draw(st.permutations(files))
    assert FolderFacts.of("x", shuffled) == FolderFacts.of("x", files)
    cut = data.draw(st.integers(0, len(files)))
    halves = [FolderFacts.of("a", files[:cut]), FolderFacts.of("b", files[cut:])]
    assert Survey.of(halves).total == FolderFacts.of("x", files).totals.plus(Totals())
