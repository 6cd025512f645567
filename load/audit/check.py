"""One thing that must be true of a database."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Check:
    """One invariant: its name, and the query that finds whatever breaks it.

    Every query selects `tenant_id` and `finding`; a database in order gives no row. It has to be fast in a tree of a
    million runs: what events tell is unnested and joined, never looked for run by run.
    """

    name: str
    sql: str
