"""A directory with every kind of file that a survey may meet, and the figures that a person counts in it."""

import os
from pathlib import Path

from service.demo.count import FileKind

MANY = 1_005

FILES: dict[str, bytes] = {
    # 8 lines, 4 of code; 2 functions, the longest of 3 lines; 1 class; 2 TODOs.
    "top.py": (
        b"# TODO: at the top\n\nclass Top:\n    def method(self):\n"
        b"        # FIXME\n        return 1\n\nasync def f(): ...\n"
    ),
    "README.md": b"# Title\n\nno function here\n",
    "app/empty.py": b"",
    "app/crlf.py": b"def a():\r\n    return 1\r\n\r\ndef b():\r\n    return 2\r\n",
    "app/unicode.py": "def größe():\n    return 'ü \u2028 ß'\n".encode(),
    "app/bom.py": b"\xef\xbb\xbfx = 1\n",
    "app/escape.py": b"x = '\\d'\n",
    "app/no_newline.py": b"x = 1\ny = 2",
    "app/broken.py": b"def broken(:\n    pass\n",
    "app/deep.py": b"x = " + b"(" * 2_000 + b")" * 2_000 + b"\n",
    "app/huge_number.py": b"x = 1" + b"0" * 5_000 + b"\n",
    "app/null.py": b"x = 1\n\0\n",
    "app/latin.py": b"# caf\xe9\nx = 1\n",
    "app/nested/deeper/leaf.py": b"def leaf():\n    def inner():\n        return 1\n    return inner\n",
    "app/nested/[bold]markup[/bold].txt": b"one\n",
    "app/nested/a name %41 with\nodd characters.txt": b"one\ntwo\n",
    "data/picture.png": b"\x89PNG\r\n\x1a\n\0\0\0",
    "data/latin.txt": b"caf\xe9\nTODO\n",
    "bücher/buch.txt": b"eins\rzwei\r",
    **{f"many/{n // 100}/file{n}.txt": b"line\n" for n in range(MANY)},
}

ODD = {
    "app/broken.py": FileKind.SYNTAX_ERROR,
    "app/deep.py": FileKind.SYNTAX_ERROR,
    "app/huge_number.py": FileKind.SYNTAX_ERROR,
    "app/null.py": FileKind.BINARY,
    "app/latin.py": FileKind.NOT_UTF8,
    "data/picture.png": FileKind.BINARY,
    "data/latin.txt": FileKind.NOT_UTF8,
}
# By folder: files, lines, code lines, functions, classes, TODOs.
FIGURES = {
    ".": (2, 11, 6, 2, 1, 2),
    "app": (14, 24, 23, 5, 0, 0),
    "bücher": (1, 2, 2, 0, 0, 0),
    "data": (2, 2, 2, 0, 0, 1),
    "many": (MANY, MANY, MANY, 0, 0, 0),
}
SKIPPED = (
    ".git/config",
    ".hidden",
    ".venv/lib.py",
    "app/__pycache__/x.py",
    "app/.cache/x.py",
    "node_modules/left/index.js",
    "app/node_modules/pad/index.js",
)


def write_odd_directory(root: Path) -> Path:
    """Write it, with what is to be skipped: hidden things, caches, links and what is no file."""
    for name, content in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    for name in SKIPPED:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("def skipped(): ...\n", encoding="utf-8")
    (root / "empty-folder").mkdir()
    (root / "link.py").symlink_to("top.py")
    (root / "linked-folder").symlink_to("app")
    (root / "app" / "dangling").symlink_to("nowhere")
    os.mkfifo(root / "app" / "pipe.py")
    return root
