-------------------------------- MODULE Tree --------------------------------
(* What the database holds of one run tree, as a value, and the questions that are asked of it. No step is taken here.

   A database d is a record:
     runs    sequence; the index is the run's id, in the order in which they were spawned. 1 is the root
     groups  sequence of spawned groups
     fences  sequence of cancellations
     events  sequence of the seq numbers that events were written with
     seq, children_total, open_fences    the columns of the tree's own row, the one that is locked                   *)
EXTENDS Naturals, Sequences, FiniteSets

CONSTANTS MaxDepth, MaxFanout, MaxTotal    \* the limits that the decision returned

Root == 1
Active == {"queued", "running"}

Run(parent, key, group, status, seq) ==
    [parent |-> parent, key |-> key, group |-> group, status |-> status,
     spawned |-> seq,            \* spawned_seq, started_seq and finalized_seq; 0 is null
     started |-> 0, finalized |-> 0,
     children |-> 0,             \* children_count
     attempt |-> 0,              \* how often it has been claimed
     lease |-> "none",           \* none, held, or due: its time has run out and nobody has acted on that yet
     finisher |-> 0,             \* the attempt whose completion was accepted
     late |-> FALSE]             \* ghost: a renewal was committed while a committed fence covered the run

(* A tree whose one event made the root; `below` are the <<parent, status>> of runs that were spawned with it. *)
Planted(below) ==
    LET Child(i) == Run(below[i][1], <<"planted", i>>, 0, below[i][2], 1)
        all == <<Run(0, <<"root", 0>>, 0, "running", 1)>> \o [i \in DOMAIN below |-> Child(i)]
    IN  [runs |-> [r \in DOMAIN all |->
                     [all[r] EXCEPT !.children = Cardinality({c \in DOMAIN all : all[c].parent = r})]],
         groups |-> <<>>, fences |-> <<>>, events |-> <<1>>,
         seq |-> 1, children_total |-> Len(below), open_fences |-> 0]

Row(d) == [seq |-> d.seq, children_total |-> d.children_total, open_fences |-> d.open_fences]

RECURSIVE Path(_, _)
Path(d, r) == IF r = Root THEN {Root} ELSE {r} \cup Path(d, d.runs[r].parent)

Depth(d, r) == Cardinality(Path(d, r)) - 1
IsActive(d, r) == d.runs[r].status \in Active
ChildrenOf(d, r) == {c \in DOMAIN d.runs : d.runs[c].parent = r}
MembersOf(d, g) == {r \in DOMAIN d.runs : d.runs[r].group = g}

(* ------------------------------------------------ fences ------------------------------------------------ *)
Covers(d, f, r) ==
    CASE f.scope = "run" -> f.run \in Path(d, r)
      [] f.scope = "children" -> \E c \in Path(d, r) : d.runs[c].parent = f.run /\ d.runs[c].spawned < f.seq
      [] f.scope = "group" -> \E c \in Path(d, r) : /\ d.runs[c].group = f.group
                                                    /\ ~(d.runs[c].finalized \in 1..(f.seq - 1))

OpenFencesOver(d, r) == {i \in DOMAIN d.fences : ~d.fences[i].drained /\ Covers(d, d.fences[i], r)}

(* The walk. The tree's row says whether there is anything to walk for. *)
IsFenced(d, row, r) == row.open_fences > 0 /\ OpenFencesOver(d, r) # {}

(* ------------------------------------------------- keys ------------------------------------------------- *)
(* A request for one run has n = 0. A group of n has the key <<prefix, 0>>, its children <<prefix, 1>> … *)
KeysOf(req) == IF req.n = 0 THEN {req.key} ELSE {<<req.key[1], i>> : i \in 1..req.n}
Taken(d, caller, key) == \E r \in DOMAIN d.runs : d.runs[r].parent = caller /\ d.runs[r].key = key
GroupsWith(d, req) == {g \in DOMAIN d.groups : d.groups[g].orchestrator = req.caller /\ d.groups[g].key = req.key}

Nothing == [kind |-> "nothing", runs |-> {}]
Refused == [kind |-> "refused", runs |-> {}]
Conflict == [kind |-> "conflict", runs |-> {}]
Spawned(runs) == [kind |-> "spawned", runs |-> runs]

(* What the key of this request has already led to. *)
Earlier(d, req) ==
    IF req.n = 0
    THEN LET hits == {r \in DOMAIN d.runs : d.runs[r].parent = req.caller /\ d.runs[r].key = req.key}
         IN  CASE hits = {} -> Nothing
               [] \E r \in hits : d.runs[r].group # 0 -> Conflict
               [] OTHER -> Spawned(hits)
    ELSE LET groups == GroupsWith(d, req)
         IN  CASE groups = {} -> Nothing
               [] \E g \in groups : d.groups[g].size # req.n -> Conflict
               [] OTHER -> Spawned(UNION {MembersOf(d, g) : g \in groups})

(* ------------------------------------------------ limits ------------------------------------------------ *)
Size(req) == IF req.n = 0 THEN 1 ELSE req.n

WithinLimits(d, row, req) ==
    /\ Depth(d, req.caller) + 1 <= MaxDepth
    /\ d.runs[req.caller].children + Size(req) <= MaxFanout
    /\ row.children_total + Size(req) <= MaxTotal
=============================================================================
