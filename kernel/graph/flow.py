"""Which node leads where."""

from collections import deque
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from kernel.graph.spec import GraphSpec


@dataclass(frozen=True, slots=True)
class Flow:
    """The successors of each node. Each question costs one look at every edge at most."""

    successors: Mapping[str, Collection[str]]

    @classmethod
    def of(cls, spec: GraphSpec) -> "Flow":
        """The flow along the edges whose two ends are there."""
        successors: dict[str, dict[str, None]] = {node.id: {} for node in spec.nodes}
        for edge in spec.edges:
            if edge.source in successors and edge.target in successors:
                successors[edge.source][edge.target] = None
        return cls(successors)

    def after(self, sources: Iterable[str], *, up_to: Collection[str] = ()) -> set[str]:
        """The nodes that can be come to from some nodes, by an edge at least, and through none of `up_to`."""
        waiting = deque(target for source in sources for target in self.successors[source])
        found: set[str] = set()
        while waiting:
            node = waiting.popleft()
            if node not in found:
                found.add(node)
                if node not in up_to:
                    waiting.extend(self.successors[node])
        return found

    def components(self) -> list[set[str]]:
        """The nodes that lead to each other and back, in sets; by Tarjan's algorithm, without recursion."""
        index: dict[str, int] = {}
        low: dict[str, int] = {}
        stack: list[str] = []
        on_stack: set[str] = set()
        components: list[set[str]] = []
        for first in self.successors:
            if first in index:
                continue
            work = [(first, iter(self.successors[first]))]
            index[first] = low[first] = len(index)
            stack.append(first)
            on_stack.add(first)
            while work:
                node, targets = work[-1]
                target = next(targets, None)
                if target is None:
                    work.pop()
                    if work:
                        low[work[-1][0]] = min(low[work[-1][0]], low[node])
                    if low[node] == index[node]:
                        components.append(_popped(stack, on_stack, node))
                elif target not in index:
                    index[target] = low[target] = len(index)
                    stack.append(target)
                    on_stack.add(target)
                    work.append((target, iter(self.successors[target])))
                elif target in on_stack:
                    low[node] = min(low[node], index[target])
        return components

    def cycles(self) -> list[set[str]]:
        """The components that can be gone round in."""
        return [
            component
            for component in self.components()
            if len(component) > 1 or any(node in self.successors[node] for node in component)
        ]


def _popped(stack: list[str], on_stack: set[str], last: str) -> set[str]:
    component = set()
    while True:
        node = stack.pop()
        on_stack.discard(node)
        component.add(node)
        if node == last:
            return component
