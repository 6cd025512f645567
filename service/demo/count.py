"""The analysis of source files, and the direct count that the agents' figures must equal. Knows nothing of Remit."""

import ast
import os
import re
import stat
import warnings
from collections.abc import Iterable, Iterator
from contextlib import suppress
from enum import StrEnum
from functools import reduce
from pathlib import Path
from urllib.parse import unquote_to_bytes

from pydantic import BaseModel, ConfigDict

SKIPPED_FOLDERS = frozenset({".git", ".venv", "node_modules", "__pycache__"})
TOP_LEVEL = "."
MAX_BYTES = 16 * 1024 * 1024
ODD_FILES_LISTED = 50

_PYTHON_SUFFIXES = frozenset({".py", ".pyi"})
_TODO = re.compile(r"\b(?:TODO|FIXME)\b")
_FIRST_SURROGATE, _LAST_SURROGATE = 0xDC80, 0xDCFF


class FileKind(StrEnum):
    """What a file turned out to be; the last five are reported, never parsed."""

    PYTHON = "python"
    TEXT = "text"
    SYNTAX_ERROR = "syntax_error"
    NOT_UTF8 = "not_utf8"
    BINARY = "binary"
    OVERSIZED = "oversized"
    UNREADABLE = "unreadable"


ODD_KINDS = frozenset(FileKind) - {FileKind.PYTHON, FileKind.TEXT}


class _Figures(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Function(_Figures):
    """A function and its length in lines, decorators not counted."""

    lines: int
    path: str
    name: str
    first_line: int


class FileFacts(_Figures):
    """What one file holds.

    `lines` are physical lines (CRLF and CR end one too); `code_lines` those that are neither blank nor, in Python, a
    comment alone; `todos` the occurrences of the words TODO and FIXME. What is not text has no lines.
    """

    path: str
    kind: FileKind
    size: int = 0
    lines: int = 0
    code_lines: int = 0
    functions: int = 0
    classes: int = 0
    todos: int = 0
    longest_function: Function | None = None
    note: str | None = None


class OddFile(_Figures):
    """A file that could not be parsed, and why."""

    path: str
    kind: FileKind
    note: str | None = None


class Totals(_Figures):
    """The sum over files; `plus` is associative and commutative, so it matters not who adds up what first."""

    files: int = 0
    kinds: dict[FileKind, int] = {}
    size: int = 0
    lines: int = 0
    code_lines: int = 0
    functions: int = 0
    classes: int = 0
    todos: int = 0
    longest_function: Function | None = None

    @classmethod
    def of(cls, facts: FileFacts) -> "Totals":
        """One file as a sum."""
        return cls(
            files=1,
            kinds={facts.kind: 1},
            size=facts.size,
            lines=facts.lines,
            code_lines=facts.code_lines,
            functions=facts.functions,
            classes=facts.classes,
            todos=facts.todos,
            longest_function=facts.longest_function,
        )

    def plus(self, other: "Totals") -> "Totals":
        """The sum of both."""
        kinds = {kind: self.kinds.get(kind, 0) + other.kinds.get(kind, 0) for kind in {*self.kinds, *other.kinds}}
        return Totals(
            files=self.files + other.files,
            kinds=kinds,
            size=self.size + other.size,
            lines=self.lines + other.lines,
            code_lines=self.code_lines + other.code_lines,
            functions=self.functions + other.functions,
            classes=self.classes + other.classes,
            todos=self.todos + other.todos,
            longest_function=_longest(f for f in (self.longest_function, other.longest_function) if f is not None),
        )


class FolderFacts(_Figures):
    """One top-level folder: its sum, and the first of its odd files by path."""

    folder: str
    totals: Totals
    odd: tuple[OddFile, ...] = ()

    @classmethod
    def of(cls, folder: str, files: Iterable[FileFacts]) -> "FolderFacts":
        """Add up the files of a folder."""
        files = list(files)
        odd = sorted((f for f in files if f.kind in ODD_KINDS), key=lambda f: f.path)[:ODD_FILES_LISTED]
        return cls(
            folder=folder,
            totals=reduce(Totals.plus, map(Totals.of, files), Totals()),
            odd=tuple(OddFile(path=f.path, kind=f.kind, note=f.note) for f in odd),
        )


class Survey(_Figures):
    """A directory, by top-level folder in the order of their names, and in all."""

    folders: tuple[FolderFacts, ...]
    total: Totals

    @classmethod
    def of(cls, folders: Iterable[FolderFacts]) -> "Survey":
        """Add up the folders."""
        ordered = tuple(sorted(folders, key=lambda f: f.folder))
        return cls(folders=ordered, total=reduce(Totals.plus, (f.totals for f in ordered), Totals()))


def wire_name(path: str) -> str:
    """A file's name as text that any JSON can carry; bytes that are no UTF-8 and control characters become `%XX`."""
    return "".join(_wire_character(character) for character in path)


def disk_name(name: str) -> str:
    """The inverse of `wire_name`."""
    return os.fsdecode(unquote_to_bytes(name))


def list_folders(root: Path) -> dict[str, int]:
    """How many files each top-level folder of `root` holds, by wire name; folders without any are left out."""
    counts = {wire_name(TOP_LEVEL): sum(1 for _ in list_files(root, TOP_LEVEL))}
    for entry in _entries(root):
        if _is_folder(entry):
            name = wire_name(entry.name)
            counts[name] = sum(1 for _ in list_files(root, name))
    return {folder: count for folder, count in counts.items() if count}


def list_files(root: Path, folder: str) -> Iterator[str]:
    """The wire names, relative to `root`, of a top-level folder's files in order; for `.` those beside the folders.

    Hidden entries, symbolic links, what is neither file nor folder, and folders of other people's code are skipped; a
    folder that cannot be read has no files.
    """
    if folder == TOP_LEVEL:
        yield from (wire_name(entry.name) for entry in _entries(root) if _is_file(entry))
        return
    waiting = [disk_name(folder)]
    while waiting:
        relative = waiting.pop()
        entries = _entries(root / relative)
        yield from (wire_name(f"{relative}/{entry.name}") for entry in entries if _is_file(entry))
        waiting.extend(f"{relative}/{entry.name}" for entry in reversed(entries) if _is_folder(entry))


def stamp_files(root: Path) -> dict[str, tuple[int, int]]:
    """The size and the time of the last change, in nanoseconds, of every file, to see later what has changed."""
    stamps = {}
    for folder in list_folders(root):
        for path in list_files(root, folder):
            with suppress(OSError):
                details = (root / disk_name(path)).lstat()
                stamps[path] = (details.st_size, details.st_mtime_ns)
    return stamps


def analyse_file(root: Path, path: str) -> FileFacts:
    """Read and analyse one file; whatever is wrong with it is part of the answer, never an exception.

    Args:
        root: the directory that is surveyed; nothing outside it is read, whatever `path` says.
        path: the file's wire name relative to `root`.
    """
    file = root / disk_name(path)
    try:
        if not file.resolve().is_relative_to(root.resolve()):
            return FileFacts(path=path, kind=FileKind.UNREADABLE, note="outside the directory that is surveyed")
        details = file.lstat()
        if not stat.S_ISREG(details.st_mode):
            return FileFacts(path=path, kind=FileKind.UNREADABLE, note="not a regular file any more")
        if details.st_size > MAX_BYTES:
            return FileFacts(path=path, kind=FileKind.OVERSIZED, size=details.st_size, note=f"over {MAX_BYTES} bytes")
        data = file.read_bytes()
    except OSError as error:
        return FileFacts(path=path, kind=FileKind.UNREADABLE, note=error.strerror)
    return analyse_source(path, data)


def analyse_source(path: str, data: bytes) -> FileFacts:
    """Analyse the bytes of one file; Python by its suffix, the rest by lines."""
    if b"\0" in data:
        return FileFacts(path=path, kind=FileKind.BINARY, size=len(data))
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # Latin-1 gives every byte a character, which is all that counting lines needs.
        facts = _count_lines(path, FileKind.NOT_UTF8, data.decode("latin-1"), len(data))
        return facts.model_copy(update={"note": f"byte {error.start}: {error.reason}"})
    if Path(path).suffix not in _PYTHON_SUFFIXES:
        return _count_lines(path, FileKind.TEXT, text, len(data))
    return _analyse_python(path, text, len(data))


def count_directory(root: Path) -> Survey:
    """Count a directory directly: what the agents' report must equal."""
    return Survey.of(
        FolderFacts.of(folder, (analyse_file(root, path) for path in list_files(root, folder)))
        for folder in list_folders(root)
    )


def _analyse_python(path: str, text: str, size: int) -> FileFacts:
    try:
        with warnings.catch_warnings():
            # The surveyed code's bad escapes are its own affair.
            warnings.simplefilter("ignore")
            module = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        where = f"line {error.lineno}: " if isinstance(error, SyntaxError) and error.lineno else ""
        what = error.msg if isinstance(error, SyntaxError) else "too deeply nested or too long a number"
        facts = _count_lines(path, FileKind.SYNTAX_ERROR, text, size)
        # A message may quote the source, and the source may hold anything.
        return facts.model_copy(update={"note": wire_name(f"{where}{what}")[:200]})
    nodes = list(ast.walk(module))
    functions = [node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    longest = _longest(
        Function(path=path, name=f.name, first_line=f.lineno, lines=(f.end_lineno or f.lineno) - f.lineno + 1)
        for f in functions
    )
    counted = _count_lines(path, FileKind.PYTHON, text, size)
    return counted.model_copy(
        update={
            "functions": len(functions),
            "classes": sum(isinstance(node, ast.ClassDef) for node in nodes),
            "longest_function": longest,
        }
    )


def _count_lines(path: str, kind: FileKind, text: str, size: int) -> FileFacts:
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    if not lines[-1]:
        lines.pop()
    commented = kind in {FileKind.PYTHON, FileKind.SYNTAX_ERROR}
    code = sum(1 for line in map(str.strip, lines) if line and not (commented and line.startswith("#")))
    todos = sum(1 for _ in _TODO.finditer(text))
    return FileFacts(path=path, kind=kind, size=size, lines=len(lines), code_lines=code, todos=todos)


def _longest(functions: Iterable[Function]) -> Function | None:
    return min(functions, key=lambda f: (-f.lines, f.path, f.first_line, f.name), default=None)


def _wire_character(character: str) -> str:
    code = ord(character)
    if _FIRST_SURROGATE <= code <= _LAST_SURROGATE:
        return f"%{code - 0xDC00:02X}"
    if character == "%" or not character.isprintable():
        return "".join(f"%{byte:02X}" for byte in character.encode("utf-8", "surrogatepass"))
    return character


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name)
    except OSError:
        return []


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file(follow_symlinks=False)
    except OSError:
        return False


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir(follow_symlinks=False) and entry.name not in SKIPPED_FOLDERS
    except OSError:
        return False
