# ruff: noqa: INP001
"""Writes the dashboards' JSON from their code, or checks that it is current: `python deploy/grafana/generate.py`."""

import argparse
import json
import sys
from pathlib import Path

import denials
import panels
import rollout
import service_health
import storms
from grafana_foundation_sdk.cog.encoder import JSONEncoder

DIRECTORY = Path(__file__).parent / "dashboards"
BOARDS = {
    "rollout.json": rollout.BOARD,
    "denials.json": denials.BOARD,
    "storms.json": storms.BOARD,
    "service.json": service_health.BOARD,
}


def render(board: panels.Board) -> str:
    """A dashboard's JSON, as the file has it."""
    return json.dumps(panels.build(board), cls=JSONEncoder, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def main() -> int:
    """Write, or with --check compare; 1 when something is out of date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail when a file is out of date")
    check = parser.parse_args().check
    stale = []
    for name, board in BOARDS.items():
        path, text = DIRECTORY / name, render(board)
        if check:
            if not path.exists() or path.read_text(encoding="utf-8") != text:
                stale.append(str(path))
        else:
            DIRECTORY.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
    stale.extend(str(path) for path in DIRECTORY.glob("*.json") if check and path.name not in BOARDS)
    for path_name in stale:
        sys.stderr.write(f"{path_name} is out of date: run python {Path(__file__).name}\n")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
