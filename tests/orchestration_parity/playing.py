"""A scenario played through the primitives, and through a graph."""

import asyncio
from contextlib import suppress
from typing import Any

import httpx2

from tests.kit import Api, done
from tests.orchestration_parity.drawing import spawn_config
from tests.orchestration_parity.stage import Cue, Stage
from tests.orchestration_parity.story import Agent, Step

GOOD = {"completed", "completed_with_errors"}
# A group with less time than this is left to run out of it.
SOON_S = 10
HANDLE_OF = {"empty": "completed", "cancelled": "failed", "running": "pending"}


class RefusedError(Exception):
    """A call was refused in a way for which the steps have no branch."""

    def __init__(self, problem: dict[str, Any]) -> None:
        super().__init__(problem["code"])
        self.problem = problem


class Client:
    """An orchestrator that calls the primitives itself, as the run that it has claimed.

    In an improvised scenario what is to be played while it waits is played as far as there is somebody to play it; then
    children end well until the group is decided. What was played is noted on the stage.
    """

    def __init__(self, stage: Stage, path: tuple[str, ...], run: dict[str, Any], cues: list[Cue]) -> None:
        self._stage = stage
        self._path = path
        self._run = run
        self._api: Api = stage.kit.api.acting_with(run["run_token"])
        self._cues = cues
        self._joins = 0
        self._latest: dict[str, Any] = {}
        self._group: str | None = None
        self._timeout_s = 0
        self.told: dict[str, Any] = {}
        self.problem: dict[str, Any] | None = None

    async def play(self, agent: Agent) -> None:
        """Do the steps, and report how it went."""
        status = "completed"
        try:
            await self._steps(agent.steps)
        except RefusedError as error:
            status, self.problem = "failed", error.problem
        await self._stage.complete(self._run, status)

    async def _steps(self, steps: list[Step]) -> None:
        for step in steps:
            outcome = await self._step(step)
            await self._steps(step.branches.get(outcome, []))

    async def _step(self, step: Step) -> str:
        match step.kind:
            case "spawn_run" | "spawn_group":
                return await self._spawn(step)
            case "join":
                return await self._join(step)
            case "judge":
                return self._judge(step)
            case "replan":
                self._latest = await self._call("evaluate-and-replan", {"run_id": self._run["run_id"]})
                self.told[step.id] = self._latest
                return "replan" if self._latest["needs_replan"] else "continue"
            case _:
                more = {name: value for name, value in step.args.items() if name != "of"}
                run_id = self.told[step.args["of"]]["spawned_run_ids"][0]
                self._latest = self.told[step.id] = await self._call("cancel-subtree", {"run_id": run_id, **more})
                return "next"

    async def _spawn(self, step: Step) -> str:
        try:
            answer = await self._call(step.kind.replace("_", "-"), {"parent_node_id": step.id, **spawn_config(step)})
        except RefusedError as error:
            if error.problem["code"] != "policy_denied" or "denied" not in step.branches:
                raise
            self._latest = self.told[step.id] = {"status": "denied", "reasons": error.problem["reasons"]}
            if step.kind == "spawn_group":
                # What was asked for last is what is to be joined, and no older group in its place.
                self._group = None
            return "denied"
        if "orchestration_group_id" in answer:
            self._group, self._timeout_s = answer["orchestration_group_id"], answer["timeout_s"]
        self._latest = self.told[step.id] = {"status": "spawned", **answer}
        return "next"

    async def _join(self, step: Step) -> str:
        if self._group is None:
            # The primitive knows no latest group; a graph that does not, either, says so in its own words.
            raise RefusedError({"code": "join_without_group"})
        self._joins += 1
        asked = {"orchestration_group_id": self._group, "wait_s": 60, **step.args}
        calling = asyncio.create_task(self._call("join", asked))
        waiting = asyncio.create_task(self._stage.joined(self._run["run_id"], self._joins))
        await asyncio.wait([calling, waiting], return_when=asyncio.FIRST_COMPLETED)
        if calling.done() and calling.exception() is not None:
            waiting.cancel()
            self._joins -= 1
        else:
            try:
                await waiting
                if self._stage.scenario.improvised:
                    await self._improvise(step, asked["orchestration_group_id"])
                else:
                    await self._perform(step.play)
            except BaseException:
                calling.cancel()
                raise
        self._latest = self.told[step.id] = await calling
        status: str = self._latest["status"]
        return HANDLE_OF.get(status, status)

    async def _perform(self, play: list[Any]) -> None:
        """What happens meanwhile; a lead acts as an orchestrator of its own, in its turn."""
        cue = Cue(self._path, self._joins, [])
        self._cues.append(cue)
        for action in play:
            slug = action if isinstance(action, str) else None
            agent = self._stage.scenario.agents.get(slug or "")
            if agent is None or not agent.steps:
                cue.play.append(action)
                await self._stage.act(action)
                continue
            run = await self._stage.claim(agent.slug)
            path = (*self._path, run["context"]["spawn_key"])
            lead = Client(self._stage, path, run, self._cues)
            await lead.play(agent)
            cue = Cue(self._path, self._joins, [], after=path)
            self._cues.append(cue)

    async def _improvise(self, step: Step, group_id: str) -> None:
        if step.args.get("timeout_s", self._timeout_s) < SOON_S:
            # Nobody is to end in time, or it would be a race.
            return
        suggested, performed = list(step.play), self._stage.performed.setdefault(step.id, [])
        while await self._stage.undecided(group_id):
            action = await self._possible(suggested.pop(0) if suggested else "completed")
            if action is None:
                continue
            performed.append(action)
            await self._perform([action])
            if action == "cancel_orchestrator":
                return

    async def _possible(self, action: Any) -> Any:
        """The action as it can be done now, if it can; where nobody else is left, whoever is held goes on."""
        if action == "release":
            return action if self._stage.held else None
        if isinstance(action, dict) or action not in {"completed", "failed", "cancelled", "hold"}:
            return action
        queued = await self._stage.queued()
        leads = [slug for slug in sorted(queued) if self._stage.scenario.agents[slug].steps]
        if leads:
            # One that is a graph waits for nobody either.
            return leads[0]
        if "worker" in queued:
            return action
        if queued:
            return {"failed" if action == "failed" else "completed": min(queued)}
        assert self._stage.held, "nobody is left who could decide the group"
        return "release"

    def _judge(self, step: Step) -> str:
        action, status = self._latest.get("suggested_action"), self._latest.get("status")
        failed = action == "replan" or (status is not None and status not in GOOD)
        outcome = "fail" if failed else "pass"
        self.told[step.id] = {"outcome": outcome}
        return outcome

    async def _call(self, name: str, body: dict[str, Any]) -> dict[str, Any]:
        whole = {"caller_run_id": self._run["run_id"], **body}
        response: httpx2.Response = await self._api.client.post(
            f"/internal/orchestration/{name}",
            json=whole,
            headers={"Authorization": f"Bearer {self._api.token}"},
            timeout=90.0,
        )
        if not response.is_success:
            raise RefusedError(response.json())
        answer: dict[str, Any] = response.json()
        return answer


async def through_primitives(stage: Stage, cues: list[Cue]) -> tuple[dict[str, Any], str | None]:
    """Play it by calls. What was played while it waited is noted in `cues`.

    Returns:
        What each step was answered, and the code that ended it, if any.
    """
    run_id = await stage.open()
    run = await stage.claim("orchestrator")
    assert run["run_id"] == run_id
    client = Client(stage, ("o",), run, cues)
    await client.play(stage.scenario.orchestrator)
    await stage.ended(run_id)
    return client.told, client.problem["code"] if client.problem else None


async def through_a_graph(stage: Stage, cues: list[Cue]) -> tuple[dict[str, Any], str | None]:
    """Play it by a graph, with the same things happening in the same places."""
    run_id = await stage.open()
    # A graph that goes another way waits for what does not come: then the records say where they part.
    with suppress(TimeoutError):
        for cue in cues:
            if cue.play:
                await stage.joined(await stage.run_at(cue.path), cue.number)
            if cue.after:
                await stage.ended(await stage.run_at(cue.after))
            for action in cue.play:
                await stage.act(action)
        await stage.ended(run_id)
    run = done(await stage.kit.api.get(f"/agents/runs/{run_id}"))
    told = (run["output"] or {}).get("steps", {})
    return told, run["error"]["code"] if run["error"] else None
