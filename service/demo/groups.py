"""Spawning many children and waiting for all of them, with the run token of whoever asks."""

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pydantic import JsonValue

from service.demo.cast import Role
from service.demo.client import Client
from service.demo.wire import Join, Run, SpawnedGroup

# What one call may carry: a thousand children, and half of the largest body that the service takes.
_LARGEST_GROUP = 1_000
_LARGEST_BODY = 512 * 1024
_CHILD_OVERHEAD = 120
_WAIT_S = 20
_READERS = 16


@dataclass(frozen=True)
class Orchestrator:
    """A run that acts for itself: the token is its own, not its tenant's."""

    client: Client
    run_id: str
    token: str


async def spawn_and_join(
    caller: Orchestrator, target: Role, key: str, subjects: Sequence[str], scopes: Sequence[str]
) -> list[str]:
    """Spawn a child for each subject, and wait until all have ended.

    Args:
        caller: on whose behalf.
        target: the agent that does the work.
        key: makes the spawn repeatable; each chunk's key is `{key}-{number}`.
        subjects: what each child is about: its payload is `{"subject": …}`.
        scopes: what each child may do.

    Returns:
        The ids of their runs, in the order of the subjects.
    """
    run_ids: list[str] = []
    groups: list[str] = []
    for number, chunk in enumerate(_chunks(subjects)):
        targets: list[JsonValue] = [
            {"target_agent_slug": target, "mapped_input_payload": {"subject": subject}} for subject in chunk
        ]
        group = await caller.client.post(
            "/internal/orchestration/spawn-group",
            {
                "caller_run_id": caller.run_id,
                "targets": targets,
                "scope_subset": list(scopes),
                "join_mode": "all",
                "idempotency_key_prefix": f"{key}-{number}",
            },
            SpawnedGroup,
            token=caller.token,
        )
        groups.append(group.orchestration_group_id)
        run_ids.extend(group.spawned_run_ids)
    for group_id in groups:
        await join(caller, group_id)
    return run_ids


async def read_runs(client: Client, run_ids: Sequence[str], *, token: str | None = None) -> list[Run]:
    """Read what became of some runs.

    Args:
        token: whose eyes to read with; by default the client's.
    """
    reading = asyncio.Semaphore(_READERS)

    async def read(run_id: str) -> Run:
        async with reading:
            return await client.get(f"/agents/runs/{run_id}", Run, token=token)

    return list(await asyncio.gather(*map(read, run_ids)))


async def join(caller: Orchestrator, group_id: str) -> Join:
    """Wait until a group is decided, by long polls."""
    while True:
        answer = await caller.client.post(
            "/internal/orchestration/join",
            {"caller_run_id": caller.run_id, "orchestration_group_id": group_id, "wait_s": _WAIT_S},
            Join,
            token=caller.token,
        )
        if answer.complete:
            return answer


def _chunks(subjects: Sequence[str]) -> Iterator[list[str]]:
    chunk: list[str] = []
    size = 0
    for subject in subjects:
        weight = len(subject.encode()) + _CHILD_OVERHEAD
        if chunk and (len(chunk) == _LARGEST_GROUP or size + weight > _LARGEST_BODY):
            yield chunk
            chunk, size = [], 0
        chunk.append(subject)
        size += weight
    if chunk:
        yield chunk
