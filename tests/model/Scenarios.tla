----------------------------- MODULE Scenarios ------------------------------
(* Small trees and small sets of requests, each big enough for one group of mistakes; the .cfg files choose. *)
EXTENDS Kernel

None(d) == {}

One(caller, key) == [op |-> "spawn", caller |-> caller, key |-> key, n |-> 0]
Group(caller, prefix, n) == [op |-> "spawn", caller |-> caller, key |-> <<prefix, 0>>, n |-> n]
Fence(scope, run, group, grace) ==
    [op |-> "fence", scope |-> scope, run |-> run, group |-> group, grace |-> grace]

Alone == Planted(<<>>)
Pair == Planted(<<<<1, "running">>>>)

(* Run 2 and 3 are a group of the root's. 2 has ended and left 4 behind, which no decision about the group concerns. *)
WithGroup ==
    LET d == Planted(<<<<1, "completed">>, <<1, "running">>, <<2, "queued">>, <<3, "queued">>>>)
    IN  [d EXCEPT !.runs[2].group = 1, !.runs[2].key = <<"p", 1>>, !.runs[2].finalized = 1,
                  !.runs[3].group = 1, !.runs[3].key = <<"p", 2>>,
                  !.groups = <<[orchestrator |-> 1, key |-> <<"p", 0>>, size |-> 2, decided |-> FALSE]>>]

Twig == Planted(<<<<1, "running">>, <<2, "queued">>>>)
OneQueued == Planted(<<<<1, "queued">>>>)

(* The root and its first child ask for a child, for the group g, or for a child whose key is that of a member of g. *)
CollidingKeys(d) ==
    UNION {{One(r, <<"a", 1>>), One(r, <<"g", 1>>), Group(r, "g", 2)} : r \in {1, 2} \cap DOMAIN d.runs}

(* More than fit, both under one parent and under two. *)
AnyNewRun(d) == UNION {{One(r, <<"a", 1>>), One(r, <<"b", 1>>), Group(r, "g", 2)} : r \in DOMAIN d.runs}

(* In WithGroup: the root, the member that still runs, and its child. *)
AroundTheGroup(d) == {One(r, <<"a", 1>>) : r \in {1, 3, 5}}

BelowTheRoot(d) == {One(2, <<"a", 1>>)}

AnyFence(d) ==
    {Fence(scope, r, 0, FALSE) : scope \in {"run", "children"}, r \in DOMAIN d.runs}
        \cup {Fence("group", d.groups[g].orchestrator, g, FALSE) : g \in DOMAIN d.groups}

EachScope(d) ==
    {Fence("run", 3, 0, FALSE), Fence("run", 1, 0, FALSE), Fence("children", 1, 0, FALSE), Fence("group", 1, 1, FALSE)}

OverlappingFences(d) == {Fence("run", 2, 0, FALSE), Fence("children", 1, 0, FALSE)}

WithGrace(d) == {Fence("children", 1, 0, TRUE)}
WithAndWithoutGrace(d) == {Fence("children", 1, 0, TRUE), Fence("run", 2, 0, FALSE)}
=============================================================================
