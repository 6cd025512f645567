"""Delivering policy: the bundle that the OPAs pull, kept up to date with its sources, and what the OPAs report back."""

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from time import monotonic

import structlog
from prometheus_client import Gauge
from pydantic import BaseModel, ConfigDict, Field, JsonValue
from watchfiles import Change, awatch

from kernel.metrics import POLICY_BUNDLE_INFO
from kernel.policy.bundle import Built, BundleError, SigningKey, build_bundle, revision_of, run_tests

log: structlog.stdlib.BoundLogger = structlog.get_logger()

BUNDLE_REFUSED = Gauge(
    "remit_policy_bundle_refused", "1 while the policy sources are refused and an older bundle stays active."
)

_WATCHED_SUFFIXES = (".rego", ".json", ".yaml", ".yml", ".manifest")
_DEBOUNCE_MS = 200
_STEP_MS = 50
# Notifications do not arrive from every file system, so the sources are also read at this interval.
_REREAD_MS = 5_000


class BundlePublisher:
    """Holds the active bundle, and takes up changed sources once they compile and pass their tests.

    Args:
        opa: the `opa` binary, by its absolute path.
        source: the directory with the manifest, the Rego and the data.
        signing_key: the key that the OPAs trust.
        capabilities: the file of permitted built-ins; `capabilities.json` in `source` by default.
        grace_s: seconds for which the revision before is still one that may answer: the time an OPA takes to follow.
    """

    def __init__(
        self,
        opa: Path,
        source: Path,
        signing_key: SigningKey,
        *,
        capabilities: Path | None = None,
        grace_s: float = 30.0,
    ) -> None:
        self._opa = opa
        self._source = source
        self._signing_key = signing_key
        self._capabilities = capabilities
        self._grace_s = grace_s
        self._active: Built | None = None
        self._retired: dict[str, float] = {}
        self._known: frozenset[str] = frozenset()
        self._published = asyncio.Event()
        self._refreshing = asyncio.Lock()
        self._tried: str | None = None
        self._watching: asyncio.Task[None] | None = None
        self.problem: str | None = None

    @property
    def signing_key(self) -> SigningKey:
        """The key that the OPAs trust."""
        return self._signing_key

    @property
    def active(self) -> Built:
        """The bundle that is served."""
        if self._active is None:
            raise RuntimeError("The publisher has not been started.")
        return self._active

    async def start(self) -> None:
        """Build the bundle, then watch its sources.

        Raises:
            BundleError: the sources do not compile. There is nothing older to fall back on.
        """
        self._publish(await self._build())
        self._watching = asyncio.create_task(self._watch(), name="watch-policies")

    async def stop(self) -> None:
        """Stop watching; the bundle stays served."""
        if self._watching is not None:
            self._watching.cancel()
            with suppress(asyncio.CancelledError):
                await self._watching
            self._watching = None

    def known_revisions(self) -> frozenset[str]:
        """The revisions whose answers count: the active one and, for the grace, those before it."""
        if self._retired and any(until <= monotonic() for until in self._retired.values()):
            self._retired = {revision: until for revision, until in self._retired.items() if until > monotonic()}
            self._known = frozenset({self.active.revision, *self._retired})
        return self._known

    async def superseded(self, etag: str) -> None:
        """Wait while the bundle with this tag is the active one."""
        while self.active.etag == etag:
            await self._published.wait()

    async def refresh(self) -> None:
        """Take up the sources as they are now, or keep the active bundle and say why in `problem`."""
        async with self._refreshing:
            await self._refresh()

    async def _refresh(self) -> None:
        try:
            while self._tried != await asyncio.to_thread(revision_of, self._source) or self.problem is not None:
                built = await self._build()
                await run_tests(self._opa, self._source, capabilities=self._capabilities)
                # What was tested is what is published: an edit in between starts over.
                if built.revision == await asyncio.to_thread(revision_of, self._source):
                    self._publish(built)
                    return
        except BundleError as error:
            self._refuse(str(error))

    async def _build(self) -> Built:
        self._tried = await asyncio.to_thread(revision_of, self._source)
        return await build_bundle(
            self._opa, self._source, signing_key=self._signing_key, capabilities=self._capabilities
        )

    def _publish(self, built: Built) -> None:
        before, self._active = self._active, built
        self._tried = built.revision
        self.problem = None
        BUNDLE_REFUSED.set(0)
        if before is not None and before.revision == built.revision:
            return
        self._retired.pop(built.revision, None)
        if before is not None:
            self._retired[before.revision] = monotonic() + self._grace_s
            POLICY_BUNDLE_INFO.remove(before.revision)
        POLICY_BUNDLE_INFO.labels(built.revision).set(1)
        self._known = frozenset({built.revision, *self._retired})
        self._published.set()
        self._published = asyncio.Event()
        log.info("policy_bundle_published", revision=built.revision, bytes=len(built.data))

    def _refuse(self, problem: str) -> None:
        self.problem = problem
        BUNDLE_REFUSED.set(1)
        log.error("policy_bundle_refused", problem=problem, active_revision=self.active.revision)

    async def _watch(self) -> None:
        while True:
            try:
                async for changes in awatch(
                    self._source,
                    watch_filter=_is_watched,
                    debounce=_DEBOUNCE_MS,
                    step=_STEP_MS,
                    rust_timeout=_REREAD_MS,
                    yield_on_timeout=True,
                ):
                    # What was refused is tried again when something changes (a test, say), not at every interval.
                    if changes or self._tried != await self._revision_or_none():
                        await self.refresh()
            except (OSError, RuntimeError) as error:
                self._refuse(f"The policy sources in {self._source} cannot be watched: {error}")
            await asyncio.sleep(_REREAD_MS / 1000)

    async def _revision_or_none(self) -> str | None:
        try:
            return await asyncio.to_thread(revision_of, self._source)
        except BundleError:
            return None


def _is_watched(_change: Change, path: str) -> bool:
    return path.endswith(_WATCHED_SUFFIXES)


class BundleStatus(BaseModel):
    """What an OPA says about one bundle, by its own clock. Times that have not come yet are in the year 1."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    active_revision: str = ""
    last_request: datetime
    last_successful_request: datetime
    last_successful_activation: datetime
    code: str = ""
    message: str = ""
    errors: tuple[JsonValue, ...] = ()


class StatusUpdate(BaseModel):
    """The body that OPA's status plugin posts, as far as it is of interest here."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    labels: Mapping[str, str] = Field(default_factory=dict)
    bundles: Mapping[str, BundleStatus] = Field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class OpaStatus:
    """The latest report of one OPA; `instance` is the id that it gave itself when it started.

    `fetched_at` is the instant, on this process's monotonic clock, at which it last heard from the bundle's server.
    """

    instance: str
    labels: Mapping[str, str]
    bundle: BundleStatus
    received_at: float
    fetched_at: float | None


class OpaStatuses:
    """What the OPAs that pull from here have reported.

    An OPA that restarts has another id, so the freshest report counts: give each process that asks an OPA one of its
    own beside it, as the embedded one and sidecars are.

    Args:
        bundle: the bundle's name in the OPAs' configuration.
        forget_after_s: seconds of silence after which an OPA is gone.
    """

    def __init__(self, *, bundle: str = "orchestration", forget_after_s: float = 3600.0) -> None:
        self._bundle = bundle
        self._forget_after_s = forget_after_s
        self._by_instance: dict[str, OpaStatus] = {}

    def report(self, update: StatusUpdate) -> None:
        """Take note of a report."""
        bundle = update.bundles.get(self._bundle)
        if bundle is None:
            return
        now = monotonic()
        instance = update.labels.get("id", "")
        before = self._by_instance.get(instance)
        self._by_instance[instance] = OpaStatus(
            instance=instance,
            labels=dict(update.labels),
            bundle=bundle,
            received_at=now,
            fetched_at=_fetched_at(bundle, before, now),
        )
        self._by_instance = {
            key: status for key, status in self._by_instance.items() if now - status.received_at < self._forget_after_s
        }
        if bundle.code:
            log.warning(
                "opa_bundle_problem", instance=instance, code=bundle.code, message=bundle.message, errors=bundle.errors
            )
        elif before is None or before.bundle.active_revision != bundle.active_revision:
            log.info("opa_bundle_activated", instance=instance, revision=bundle.active_revision)

    def all(self) -> list[OpaStatus]:
        """The latest report of each OPA, the most recent first."""
        return sorted(self._by_instance.values(), key=lambda status: status.received_at, reverse=True)

    def bundle_age_s(self) -> float | None:
        """Seconds since an OPA last heard from the bundle's server; None when none ever did."""
        fetched = [status.fetched_at for status in self._by_instance.values() if status.fetched_at is not None]
        return monotonic() - max(fetched) if fetched else None


def _fetched_at(bundle: BundleStatus, before: OpaStatus | None, now: float) -> float | None:
    """Place the OPA's last success on our clock without comparing the two clocks.

    A report is sent as soon as a request has ended, so `last_request` is about now, and the time since the success is
    a difference of two times of the OPA's.
    """
    if bundle.last_successful_request.year == 1:
        return None
    if before is not None and bundle.last_successful_request <= before.bundle.last_successful_request:
        return before.fetched_at
    return now - max(0.0, (bundle.last_request - bundle.last_successful_request).total_seconds())
