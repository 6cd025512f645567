"""The storms, for locust: `uv run locust -f load/locustfile.py HighFanout`, or all of them at once.

Without `--host` it storms the service of `--data-dir` (.remit). `--list` says which there are, `--class-picker` lets
one choose in the browser; load/storms/README.md describes them.
"""

from load.storms.cancellation_storm import CancellationStorm
from load.storms.conductor import conduct
from load.storms.deep_trees import DeepTrees
from load.storms.denied_calls import DeniedCalls
from load.storms.high_fanout import HighFanout
from load.storms.join_herd import JoinHerd
from load.storms.mixed_tenants import MixedTenants
from load.storms.soak import Soak

__all__ = [
    "CancellationStorm",
    "DeepTrees",
    "DeniedCalls",
    "HighFanout",
    "JoinHerd",
    "MixedTenants",
    "Soak",
]

conduct()
