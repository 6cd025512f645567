"""Traffic of every kind that a dashboard shows, as runtimes and their workers make it."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from tests.kit import Api, Kit, Run, done, refused

WIDE = {"max_fanout": 10_000, "max_children_total": 10_000, "max_depth": 5}


@dataclass
class Traffic:
    """Two tenants at work: one does everything, the other one's surface is turned off on the way."""

    busy: Kit
    flagged: Kit
    root: Run
    narrow: Run
    stalling: Run
    flagged_root: Run
    lost: list[dict[str, Any]] = field(default_factory=list)
    told_lost: int = 0
    rounds: int = 0

    @classmethod
    async def begin(cls, admin: Api) -> "Traffic":
        busy, flagged = await Kit.make(admin), await Kit.make(admin)
        root, _ = await busy.team(**WIDE)
        narrow = await busy.root(await busy.orchestrator("narrow", may_spawn=["worker"], max_fanout=1))
        await busy.agent("staller")
        stalling = await busy.root(await busy.orchestrator("stalling", may_spawn=["staller"], **WIDE))
        flagged_root, _ = await flagged.team(**WIDE)
        return cls(busy, flagged, root, narrow, stalling, flagged_root)

    async def run(self, seconds: float, *, halfway: Callable[[], Awaitable[None]]) -> None:
        """Go round for some seconds; at their half the second tenant loses its surface, and `halfway` happens.

        However long that takes: a worker has been told that its lease is lost.
        """
        loop = asyncio.get_running_loop()
        started, turned = loop.time(), False
        while loop.time() - started < seconds or not turned or not self.told_lost:
            if not turned and loop.time() - started > seconds / 2:
                turned = True
                await halfway()
                await self.turn_off()
            await self.round()

    async def turn_off(self) -> None:
        flags = {"option_a_graphspec_v2": True, "option_b_runtime_primitives": False}
        done(await self.flagged.admin.put(f"/tenants/{self.flagged.tenant_id}/flags", flags))

    async def round(self) -> None:
        """A bit of everything; each part asserts that it was answered as it should be."""
        self.rounds += 1
        await asyncio.gather(
            self.spawn_and_work(),
            self.be_denied(),
            self.cancel_and_be_refused(),
            self.lose_a_lease(),
            self.be_flagged(),
        )

    async def spawn_and_work(self) -> None:
        kit, key = self.busy, f"work-{self.rounds}"
        group = done(await kit.spawn_group(self.root, key, 4, join_mode="quorum", quorum_threshold=2, timeout_s=600))
        claimed = await self.claim(3)
        done(await kit.api.post("/work/heartbeat", {"leases": [_lease(run) for run in claimed], "extend_s": 60}))
        for number, run in enumerate(claimed):
            status = "completed" if number else "failed"
            # A quorum may have been reached without it, and then it is cancelled.
            await kit.api.post("/work/complete", {**_lease(run), "status": status})
        join = {"caller_run_id": self.root.run_id, "orchestration_group_id": group["orchestration_group_id"]}
        acting = kit.api.acting_with(self.root.token)
        done(await acting.post("/internal/orchestration/join", join))
        judged = {"caller_run_id": self.root.run_id, "run_id": self.root.run_id}
        done(await acting.post("/internal/orchestration/evaluate-and-replan", judged))
        done(await acting.post("/internal/orchestration/query-tree", {"run_id": self.root.run_id, "limit": 5}))

    async def be_denied(self) -> None:
        answers = [await self.busy.spawn(self.narrow, f"denied-{self.rounds}-{n}") for n in range(2)]
        refused(answers[1], 403, "policy_denied")
        refused(await self.busy.spawn(self.root, f"scope-{self.rounds}", scope_subset=["admin"]), 403, "policy_denied")
        refused(await self.busy.spawn(self.root, f"list-{self.rounds}", target="narrow"), 403, "policy_denied")

    async def cancel_and_be_refused(self) -> None:
        kit = self.busy
        more = {"scope_subset": ["agents.execute", "read"], "start_background": False}
        child = done(await kit.spawn(self.root, f"branch-{self.rounds}", "orchestrator", **more))
        (run_id,) = child["spawned_run_ids"]
        branch = Run(run_id, child["run_tokens"][run_id], "")
        done(await kit.spawn_group(branch, "below", 3))
        cancel = {"caller_run_id": self.root.run_id, "run_id": run_id}
        done(await kit.api.acting_with(self.root.token).post("/internal/orchestration/cancel-subtree", cancel))
        refused(await kit.spawn(branch, "escape"), 409, "run_cancelled")

    async def lose_a_lease(self) -> None:
        """Hold a run until its lease is taken back; what was lost in rounds before is reported too late."""
        for run in self.lost:
            answer = await self.busy.api.post("/work/complete", {**_lease(run), "status": "completed"})
            assert answer.status_code == 409, answer.text
            self.told_lost += answer.json()["code"] == "lease_lost"
        self.lost = []
        if self.rounds % 4 == 1:
            # From a queue of its own: what is lost in that of the groups may be cancelled with one of them.
            done(await self.busy.spawn(self.stalling, f"lost-{self.rounds}", target="staller"))
            self.lost = await self.claim(1, "staller", lease_s=1)
            async with asyncio.timeout(30):
                while await self._is_running(self.lost[0]["run_id"]):  # noqa: ASYNC110 - it is asked, and tells nobody
                    await asyncio.sleep(0.05)

    async def _is_running(self, run_id: str) -> bool:
        return bool(done(await self.busy.api.get(f"/agents/runs/{run_id}"))["status"] == "running")

    async def be_flagged(self) -> None:
        await self.flagged.spawn(self.flagged_root, f"flagged-{self.rounds}")

    async def claim(self, max_runs: int, agent: str = "worker", lease_s: int = 60) -> list[dict[str, Any]]:
        body = {"agent_slugs": [agent], "max_runs": max_runs, "lease_s": lease_s, "wait_s": 5}
        claimed: list[dict[str, Any]] = done(await self.busy.api.post("/work/claim", body))["runs"]
        return claimed


def _lease(run: dict[str, Any]) -> dict[str, Any]:
    return {"run_id": run["run_id"], "lease": run["lease"]}
