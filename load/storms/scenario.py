"""A user of a storm: a client with arrivals at given rates, and workers that do what is queued."""

import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import ClassVar

import gevent
from gevent.pool import Group
from locust import User, task
from locust.env import Environment
from locust.exception import StopUser

from load.storms.arrivals import LAST_ANSWERS_S, Dispatcher, Stream
from load.storms.client import Client, Tenant
from load.storms.followers import Followers
from load.storms.stage import Stage
from load.storms.storming import Storming
from load.storms.tally import Tally
from load.storms.workers import Worker


class Scenario(User):
    """What every storm has in common. A scenario says what it prepares, and which arrivals it has."""

    abstract = True
    name: ClassVar[str]
    # What must have been counted at least once (`Tally.count`) for the storm to be the one that its name says.
    happens: ClassVar[Sequence[str]] = ()
    # Whether some of its workers are late, or never heard of again.
    careless: ClassVar[bool] = False
    # How many calls of one user may wait for something to happen, on connections of their own.
    waiting: ClassVar[int] = 1

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        self.storming = Storming.of(environment)
        self.tally: Tally = self.storming.tally(self.name)
        self.stage: Stage = self.storming.stage
        self.dice = random.Random(self.storming.seed())
        self._workers = self.storming.share_of_workers()
        self._ends = math.inf
        self._beside = Group()
        self.client = self._client(environment, connections=self.storming.in_flight + self._workers)
        # What waits for long would otherwise keep the arrivals from being sent.
        self.waiters = self._client(environment, connections=self.waiting)

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

    def later(self, act: Callable[..., None], *arguments: object) -> None:
        """Do something beside the arrivals, which the end of the storm waits for."""
        self._beside.spawn(self._beside_the_arrivals, act, *arguments)

    def follow(self) -> Followers:
        """Readers of event streams, who stop with the arrivals."""
        return Followers(
            self.storming.host,
            self.client,
            self.tally,
            self.dice,
            later=self.later,
            over=self._over,
        )

    @task
    def storm(self) -> None:
        """Prepare, and let it loose until its time is over; then this user is done."""
        try:
            self._prepare_with_all()
            self._let_loose()
        except Exception as error:
            self.tally.errors[f"{self.name}: {type(error).__name__}: {error}"] += 1
            raise StopUser from error
        finally:
            self._beside.kill()
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
        dispatcher = Dispatcher(
            self.tally,
            in_flight=self.storming.in_flight,
            most=self.storming.most,
            dice=self.dice,
            over=self.storming.over,
        )
        self._ends = time.perf_counter() + self.storming.seconds
        tenants = self.worked()
        worker = Worker(self.client, self.tally, self.dice, self.later, careless=self.careless)
        workers = [gevent.spawn(worker.run, tenants, self._over) for _ in range(self._workers if tenants else 0)]
        try:
            dispatcher.run(streams, self.storming.seconds)
            gevent.joinall(workers)
            if not self._beside.join(LAST_ANSWERS_S):
                self.tally.find("unanswered", f"{len(self._beside)} of what went on beside the arrivals")
        finally:
            gevent.killall(workers)

    def _over(self) -> bool:
        return self.storming.over.is_set() or time.perf_counter() >= self._ends

    def _beside_the_arrivals(self, act: Callable[..., None], *arguments: object) -> None:
        try:
            act(*arguments)
        except Exception as error:
            self.tally.errors[f"{self.name}: {type(error).__name__}: {error}"] += 1
            raise

    def _client(self, environment: Environment, *, connections: int) -> Client:
        return Client(environment, self.storming.host, self.tally, self.storming.ledger, connections=connections)
