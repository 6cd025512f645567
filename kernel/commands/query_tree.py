"""Look at a tree: in flat pages, or nested where it is small."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from uuid import UUID

from kernel.commands import asking
from kernel.commands.asking import Standing
from kernel.domain.events import Surface
from kernel.domain.joins import GroupStatus
from kernel.domain.lineage import MAX_INTEGER, START, Ancestry, Cursor, GroupNode, Node, Position, Rollup
from kernel.domain.principal import Principal
from kernel.domain.run import ACTIVE, RunStatus
from kernel.policy.engine import PolicyEngine
from kernel.store import effective, lineage
from kernel.store.engine import Database, ReadSession

# Nested up to here; beyond it in pages.
MAX_NESTED = 1_000
# A subtree that is no larger is walked for each page, some 20 ms at most. Of a larger one so large a part of the tree
# belongs to it that scanning the tree in order soon fills a page.
MAX_WALKED = 20_000
SCANNED_AT_ONCE = 2_000
# Runs whose way up is kept in memory while a page is looked for.
MAX_KNOWN = 50_000


@dataclass(frozen=True, slots=True)
class QueryTree:
    """What is asked for. `max_depth` is counted from the run; `status` is an effective one."""

    run_id: UUID
    max_depth: int | None = None
    status: RunStatus | None = None
    cursor: str | None = None
    limit: int = 200
    rollup: bool = False
    surface: Surface = Surface.RUNTIME_PRIMITIVES


@dataclass(frozen=True, slots=True)
class TreePage:
    """A page of a subtree in tree order. The rollup counts all of the subtree down to `max_depth`."""

    root_run_id: UUID
    run_id: UUID
    nodes: Sequence[Node]
    next_cursor: str | None
    rollup: Rollup | None


@dataclass(frozen=True, slots=True)
class Tree:
    """A tree in tree order, with the groups of its runs; or the first page of one that is too large to be nested."""

    root_run_id: UUID
    top_run_id: UUID
    nodes: Sequence[Node]
    groups: Sequence[GroupNode]
    node_count: int
    truncated: bool
    next_cursor: str | None


class QueryTreeCommand:
    """Asks policy, then reads a page."""

    def __init__(self, database: Database, engine: PolicyEngine) -> None:
        self._database = database
        self._engine = engine

    async def execute(self, principal: Principal, request: QueryTree) -> TreePage:
        """A page of a run and those below it.

        Raises:
            InvalidRequestError: when the cursor is none of ours.
            NotFoundError: when the tenant has no such run.
            ForbiddenError: when it is outside the reach of the token.
        """
        cursor = Cursor.read(request.cursor, request.run_id) if request.cursor is not None else None
        standing = await asking.check_may_read(self._database, self._engine, principal, request.run_id, request.surface)
        max_depth = MAX_INTEGER
        if request.max_depth is not None:
            max_depth = min(standing.subject.depth + request.max_depth, MAX_INTEGER)
        async with self._database.read() as session:
            pages = Pages(session, standing, max_depth=max_depth, status=request.status)
            nodes, next_cursor = await pages.read(cursor, request.limit)
            rollup = None
            if request.rollup:
                rollup = await lineage.count(
                    session,
                    principal.tenant,
                    standing.subject_root_run_id,
                    request.run_id,
                    max_depth=max_depth,
                    fenced=bool(standing.open_fences),
                )
        return TreePage(standing.subject_root_run_id, request.run_id, nodes, next_cursor, rollup)


class ReadTree:
    """Reads the tree that a run belongs to."""

    def __init__(self, database: Database, engine: PolicyEngine) -> None:
        self._database = database
        self._engine = engine

    async def execute(self, principal: Principal, run_id: UUID, surface: Surface | None = None) -> Tree:
        """The tree of a run's root; with a run's token, the part of it at and below that run.

        Args:
            surface: the one that the call came through, if any.

        Raises:
            NotFoundError: when the tenant has no such run.
            ForbiddenError: when it is outside the reach of the token.
        """
        standing = await asking.check_may_read(self._database, self._engine, principal, run_id, surface)
        async with self._database.read() as session:
            return await read_tree(session, principal, standing)


async def read_tree(session: ReadSession, principal: Principal, standing: Standing) -> Tree:
    """The tree around a run that may be read, as far as the principal's reach goes."""
    tenant_id, root_run_id = standing.tenant.tenant_id, standing.subject_root_run_id
    top = principal.run_id if principal.run_id is not None else root_run_id
    if top != standing.subject.run_id:
        standing = await asking.subject_facts(session, principal, top)
    pages = Pages(session, standing)
    nodes, next_cursor = await pages.read(None, MAX_NESTED)
    if next_cursor is not None:
        count = standing.tree_size
        if top != root_run_id:
            rollup = await lineage.count(session, tenant_id, root_run_id, top, max_depth=MAX_INTEGER, fenced=False)
            count = rollup.total
        return Tree(root_run_id, top, nodes, (), count, truncated=True, next_cursor=next_cursor)
    run_ids = [node.run_id for node in nodes]
    groups = await lineage.groups_of(session, tenant_id, run_ids)
    covered = await effective.cover(session, tenant_id, root_run_id, await pages.known(), run_ids)
    closed = [
        replace(group, status=GroupStatus.CANCELLED.value)
        if group.status == GroupStatus.RUNNING and group.orchestrator_run_id in covered
        else group
        for group in groups
    ]
    return Tree(root_run_id, top, nodes, closed, len(nodes), truncated=False, next_cursor=None)


class Pages:
    """The pages of one subtree, with effective statuses."""

    def __init__(
        self,
        session: ReadSession,
        standing: Standing,
        *,
        max_depth: int = MAX_INTEGER,
        status: RunStatus | None = None,
    ) -> None:
        self._session = session
        self._standing = standing
        self._max_depth = max_depth
        self._status = status
        self._known: Ancestry | None = None
        self._within: dict[UUID, bool] = {}

    async def known(self) -> Ancestry:
        """What is known of the tree's open fences; read before any run is."""
        if self._known is None:
            standing = self._standing
            self._known = (
                await effective.ancestry(self._session, standing.tenant.tenant_id, standing.subject_root_run_id)
                if standing.open_fences
                else Ancestry()
            )
        return self._known

    async def read(self, cursor: Cursor | None, limit: int) -> tuple[list[Node], str | None]:
        """The next page, and the cursor of the one after it."""
        known = await self.known()
        if self._status in ACTIVE and effective.whole_tree(known, self._standing.subject_root_run_id) is not None:
            return [], None
        after, scan = (cursor.after, cursor.scan) if cursor is not None else (START, False)
        nodes: list[Node] = []
        while len(nodes) <= limit:
            wanted = limit + 1 - len(nodes)
            found, scan, ended, last = await self._fetch(known, after, wanted, scan=scan)
            nodes.extend(found)
            if ended:
                break
            after = last
            if len(known.steps) > MAX_KNOWN:
                known.forget()
                self._within.clear()
        if len(nodes) <= limit:
            return nodes, None
        return nodes[:limit], Cursor(self._standing.subject.run_id, nodes[limit - 1].position, scan).write()

    async def _fetch(
        self, known: Ancestry, after: Position, wanted: int, *, scan: bool
    ) -> tuple[list[Node], bool, bool, Position]:
        """Some of the next nodes; whether by a scan; whether these are the last; and how far was looked."""
        standing = self._standing
        tenant_id, root_run_id = standing.tenant.tenant_id, standing.subject_root_run_id
        statuses = effective.stored_statuses(self._status) if self._status is not None else None
        rows: list[Node] | None = None
        # Where what is read may be dropped again, a larger piece is read.
        asked = max(wanted, SCANNED_AT_ONCE) if known.fences and statuses is not None else wanted
        if not standing.is_root and not scan:
            rows = await lineage.subtree_page(
                self._session,
                tenant_id,
                standing.subject.run_id,
                after,
                limit=asked,
                max_depth=self._max_depth,
                statuses=statuses,
                most_runs=MAX_WALKED,
            )
            scan = rows is None
        if rows is None:
            if not standing.is_root:
                # Nothing below a run was spawned before it.
                asked = SCANNED_AT_ONCE
                after = max(after, _just_before(Position(*standing.subject_position)))
            rows = await lineage.tree_page(
                self._session,
                tenant_id,
                root_run_id,
                after,
                limit=asked,
                max_depth=self._max_depth,
                statuses=statuses,
            )
        ended = len(rows) < asked
        last = rows[-1].position if rows else after
        if scan:
            rows = await self._below(known, rows)
        covered = await effective.cover(self._session, tenant_id, root_run_id, known, [node.run_id for node in rows])
        shown = [self._shown(node, covered.get(node.run_id) is not None) for node in rows]
        return [node for node in shown if node is not None], scan, ended, last

    async def _below(self, known: Ancestry, rows: list[Node]) -> list[Node]:
        standing = self._standing
        await effective.climb(self._session, standing.tenant.tenant_id, known, [node.run_id for node in rows])
        return [node for node in rows if known.is_within(node.run_id, standing.subject.run_id, self._within)]

    def _shown(self, node: Node, covered: bool) -> Node | None:
        if covered and RunStatus(node.status) in ACTIVE:
            node = replace(node, status=RunStatus.CANCELLED.value)
        return node if self._status is None or node.status == self._status else None


def _just_before(position: Position) -> Position:
    return Position(position.spawned_seq, position.ordinal - 1)
