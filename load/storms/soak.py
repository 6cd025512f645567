"""Hours of an ordinary day: everything at a moderate rate, old trees ended, and nothing that grows in the service."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field

from load.storms.arrivals import IdleError, Stream
from load.storms.client import CANCELLED, Tenant, child_of
from load.storms.overdue import Overdue
from load.storms.repeats import Repeats
from load.storms.scenario import Scenario
from load.storms.storming import Storming

MOST_TREES = 20
GROUP = 10
# Once warm, the service's memory stands still: the last third of a long storm is held against the middle one.
LONG_S = 300.0
GROWTH, GROWTH_MIB = 1.15, 20.0


@dataclass
class Job:
    """One root and what belongs to it."""

    root: str
    branches: list[str]
    groups: list[str] = field(default_factory=list)


class Soak(Scenario):
    """A tenant whose jobs begin, fan out, are joined, looked at, judged, ended or cancelled."""

    abstract = False
    name = "soak"
    careless = True
    waiting = 12

    def prepare(self) -> None:
        self.tenant = self.stage.tenant(self.name, drafts=["draft"])
        self.jobs: list[Job] = []
        self.repeats = Repeats(self.client, self.tally)
        self.followers = self.follow()
        self.overdue = Overdue(self.client, self.waiters, self.tally, self.tenant, self.later)
        # Something to spawn into, to join and to cancel from the first moment on.
        if root := self.client.start(self.tenant):
            self.jobs.append(job := Job(root, [root]))
            self._spawn_group(job)

    def streams(self) -> Sequence[Stream]:
        return [
            Stream("job", 0.5, self.begin, evenly=True),
            Stream("spawn", 8.0, self.spawn),
            Stream("branch", 0.5, self.branch),
            Stream("group", 0.8, self.group),
            Stream("join", 1.5, self.join),
            Stream("read", 2.0, self.read),
            Stream("refused", 0.5, self.ask_in_vain),
            Stream("replan", 0.5, self.replan),
            Stream("cancel", 0.3, self.cancel),
            Stream("overdue", 0.3, self.overdue.plant),
        ]

    def worked(self) -> Sequence[Tenant]:
        return [self.tenant]

    def begin(self, due: float) -> None:
        root = self.client.start(self.tenant, due=due, stream="job")
        if root is None:
            return
        self.jobs.append(Job(root, [root]))
        self.followers.take(self.tenant, root)
        if len(self.jobs) > MOST_TREES:
            ended = self.jobs.pop(0)
            self.client.report(self.tenant, ended.root, "completed")
            # What it left behind goes on without it; nobody waits for that.
            self.client.cancel(self.tenant, ended.root, ended.root, expect=CANCELLED)

    def spawn(self, due: float) -> None:
        job = self._job()
        parent, key = self.dice.choice(job.branches), uuid.uuid4().hex
        answer = self.client.spawn(self.tenant, parent, key=key, due=due, stream="spawn", expect=CANCELLED)
        if answer.ok:
            self.repeats.follow(self.tenant, parent, key, answer)

    def branch(self, due: float) -> None:
        job = self._job()
        answer = self.client.spawn(
            self.tenant, self.dice.choice(job.branches), "orchestrator", due=due, stream="branch", expect=CANCELLED
        )
        if answer.ok:
            job.branches.append(child_of(answer))

    def group(self, due: float) -> None:
        self._spawn_group(self._job(), due=due, stream="group")

    def _spawn_group(self, job: Job, *, due: float | None = None, stream: str | None = None) -> None:
        mode = self.dice.choice(("all", "fail_fast", "first_success"))
        answer = self.client.spawn_group(
            self.tenant, job.root, GROUP, terms={"join_mode": mode}, due=due, stream=stream, expect=CANCELLED
        )
        if answer.ok:
            job.groups.append(answer.body["orchestration_group_id"])

    def join(self, due: float) -> None:
        job = self._job(joinable=True)
        group_id = self.dice.choice(job.groups)
        self.client.join(self.tenant, job.root, group_id, due=due, stream="join", expect=CANCELLED)

    def read(self, due: float) -> None:
        job = self._job()
        self.client.query(self.tenant, job.root, terms={"rollup": True}, due=due, stream="read")

    def ask_in_vain(self, due: float) -> None:
        job = self._job()
        answer = self.client.spawn(
            self.tenant, job.root, "draft", due=due, stream="refused", expect=CANCELLED, sought="policy_denied"
        )
        if answer.ok:
            self.tally.find("let through", "a spawn of an agent that is not published")

    def replan(self, due: float) -> None:
        job = self._job()
        self.client.replan(self.tenant, job.root, due=due, stream="replan", expect=CANCELLED)

    def cancel(self, due: float) -> None:
        job = self._job()
        run_id = self.dice.choice(job.branches)
        if run_id == job.root:
            self.jobs.remove(job)
        self.client.cancel(self.tenant, job.root, run_id, due=due, stream="cancel", expect=CANCELLED)

    @classmethod
    def promise(cls, storming: Storming) -> None:
        super().promise(storming)
        service = storming.watch.told()
        if storming.ran_s < LONG_S or not service:
            return
        middle, last = service["rss_mib_middle"], service["rss_mib_last"]
        if last > middle * GROWTH + GROWTH_MIB:
            storming.tally(cls.name).find("growth", f"the service took {middle:.0f} MiB midway, {last:.0f} at last")

    def _job(self, *, joinable: bool = False) -> Job:
        jobs = [job for job in self.jobs if job.groups or not joinable]
        if not jobs:
            raise IdleError
        return self.dice.choice(jobs)
