"""A user of a storm: a client with arrivals at given rates, and workers that do what is queued."""

import random
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import gevent
from locust import User, task
from locust.env import Environment
from locust.exception import StopUser

from load.storms.arrivals import Dispatcher, Stream
from load.storms.client import Client, Tenant
from load.storms.stage import Stage
from load.storms.storming import Storming
from load.storms.tally import Tally

WORKER_WAIT_S = 0.5
RUNS_AT_ONCE = 10
FAILED_SHARE = 0.05


class Scenario(User):
    """What every storm has in common. A scenario says what it prepares, and which arrivals it has."""

    abstract = True
    name: ClassVar[str]
    # What must have been counted at least once (`Tally.count`) for the storm to be the one that its name says.
    happens: ClassVar[Sequence[str]] = ()

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        self.storming = Storming.of(environment)
        self.tally: Tally = self.storming.tally(self.name)
        self.stage: Stage = self.storming.stage
        self.dice = random.Random(self.storming.seed())
        self._workers = self.storming.share_of_workers()
        self.client = Client(
            environment,
            self.storming.host,
            self.tally,
            self.storming.ledger,
            connections=self.storming.in_flight + self._workers,
        )

    def prepare(self) -> None:
        """Make what the arrivals act on."""
        raise NotImplementedError

    def streams(self) -> Sequence[Stream]:
        """The arrivals, at the rates of one user."""
        raise NotImplementedError

    def worked(self) -> Sequence[Tenant]:
        """The tenants whose queued runs this user's workers claim."""
        return ()

    @classmethod
    def promise(cls, storming: Storming) -> None:
        """Look, when all is over, whether what this storm is about came and was kept; `Tally.find` what was not."""
        tally = storming.tally(cls.name)
        for what in cls.happens:
            if not tally.notes.get(what):
                tally.find("promise", f"{what}: never happened")

    def scaled(self, size: int, *, least: int = 1) -> int:
        """A size of this storm, as `--scale` has it."""
        return self.storming.scaled(size, least=least)

    @task
    def storm(self) -> None:
        """Prepare, and let it loose until its time is over; then this user is done."""
        try:
            self._prepare_with_all()
            self._let_loose()
        except Exception as error:
            self.tally.errors[f"{self.name}: {type(error).__name__}: {error}"] += 1
            raise StopUser from error
        raise StopUser

    def _prepare_with_all(self) -> None:
        runner = self.environment.runner
        assert runner is not None
        try:
            self.prepare()
        finally:
            # One that could not prepare must not keep the others waiting.
            self.storming.prepared(of=runner.target_user_count)
        self.storming.await_all()

    def _let_loose(self) -> None:
        streams = [replace(stream, rate=stream.rate * self.storming.pace) for stream in self.streams()]
        dispatcher = Dispatcher(self.tally, in_flight=self.storming.in_flight, most=self.storming.most, dice=self.dice)
        end = time.perf_counter() + self.storming.seconds
        tenants = self.worked()
        workers = [gevent.spawn(self._work, tenants, end) for _ in range(self._workers if tenants else 0)]
        try:
            dispatcher.run(streams, self.storming.seconds)
            gevent.joinall(workers)
        finally:
            gevent.killall(workers)

    def _work(self, tenants: Sequence[Tenant], end: float) -> None:
        """Claim and complete, as a runtime does: one thing after the other."""
        turn = self.dice.randrange(len(tenants))
        while time.perf_counter() < end:
            tenant = tenants[turn % len(tenants)]
            turn += 1
            for run in self.client.claim(tenant, at_most=RUNS_AT_ONCE, wait_s=WORKER_WAIT_S):
                status = "failed" if self.dice.random() < FAILED_SHARE else "completed"
                self.client.complete(tenant, run, status)
