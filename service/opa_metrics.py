"""What the OPAs that pull from this process have reported, as metrics: read from memory when they are scraped."""

from collections.abc import Iterator
from time import monotonic

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from service.policy_delivery import OpaStatuses

# An OPA that is alive reports after each poll, which takes two minutes at most with its defaults. One that restarts has
# another name, and what its old one had active is no revision that anybody decides by.
SILENT_AFTER_S = 300.0
MAX_OPAS = 50


class OpaCollector(Collector):
    """The revision of each OPA, and how long ago it heard from the bundle's server.

    The label is `opa`, the id that each gave itself: `instance` is Prometheus' own word for what it scrapes.
    """

    def __init__(self, statuses: OpaStatuses) -> None:
        self._statuses = statuses

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The metrics of now, of the 50 OPAs that reported last.

        The age goes on rising when an OPA is heard of no more, until it is forgotten: silence is its news.
        """
        age = GaugeMetricFamily(
            "remit_opa_bundle_age_seconds", "Seconds since an OPA last heard from the bundle's server.", labels=["opa"]
        )
        info = GaugeMetricFamily(
            "remit_opa_bundle_info", "1 for the revision that an OPA has activated.", labels=["opa", "revision"]
        )
        now = monotonic()
        for status in self._statuses.all()[:MAX_OPAS]:
            if status.fetched_at is not None:
                age.add_metric([status.instance], now - status.fetched_at)
            if now - status.received_at < SILENT_AFTER_S:
                info.add_metric([status.instance, status.bundle.active_revision], 1)
        yield age
        yield info
