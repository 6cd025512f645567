"""The limit: the same rows as plainly as PostgreSQL takes them, with every index and key in place."""

import time

from load.bench_cancel import FLAT_UPDATE, plant
from load.peers.comparison import Contender, Measurements, Work
from load.peers.ours import CANCELS, GROUP, LARGE, settle
from load.peers.verification import Verified, expect
from load.subject import Subject


async def measure(subject: Subject, measurements: Measurements, verified: Verified) -> None:
    """Update the rows of subtrees. Those of groups are inserted in turn with ours, in `ours`."""
    connection = await subject.database()
    try:
        for work, size, turns in ((Work.DRAIN, GROUP, CANCELS), (Work.LARGE_DRAIN, LARGE, 1)):
            trees = [await plant(subject, size) for _ in range(turns)]
            await settle(subject)
            rates = []
            for tree in trees:
                started = time.perf_counter()
                updated = await connection.execute(FLAT_UPDATE, subject.tenant_id, tree.root)
                took = time.perf_counter() - started
                expect("rows of the plain UPDATE", int(updated.split()[-1]), size + 1, verified)
                rates.append((size + 1) / took)
            measurements.add(work, Contender.PLAIN_UPDATE, *rates)
    finally:
        await connection.close()
