----------------------------- MODULE Cancelling -----------------------------
(* cancel_subtree: the fence, which is one row; then the drain, which is a reconciler's.
   A request for a fence is [op |-> "fence", scope, run, group, grace].
   A drainer's is [op |-> "drain", fence, list]: the ids that it wrote down and has not dealt with yet.              *)
EXTENDS Transactions

CONSTANTS ChunkSize,    \* how many runs a drain cancels under one lock
          OneWinner     \* drained_at is set only where it is null, and only who sets it lowers open_fences

FenceOutcome(p) ==
    LET req == at[p].req
        row == at[p].row
        seen == at[p].snapshot[1]
        fence == [scope |-> req.scope, run |-> req.run, group |-> req.group, seq |-> row.seq + 1,
                  grace |-> IF req.grace THEN "open" ELSE "none",    \* none, open or over
                  drained |-> FALSE, cancelled |-> 0]
        fenced == WithEvent([db EXCEPT !.fences = Append(@, fence), !.open_fences = row.open_fences + 1], row)
        answered == At("answer", req)
    IN  IF req.scope # "group" THEN Outcome(fenced, answered)
        ELSE IF seen.groups[req.group].decided THEN Outcome(db, answered)    \* a group is decided once
        ELSE Outcome([fenced EXCEPT !.groups[req.group].decided = TRUE], answered)

(* `changed` are cancelled by fence f, under one event. *)
Cancelled(d, row, f, changed) ==
    IF changed = {} THEN d
    ELSE WithEvent(
            [d EXCEPT !.runs = [r \in DOMAIN @ |-> IF r \in changed
                                                   THEN [@[r] EXCEPT !.status = "cancelled", !.lease = "none",
                                                                     !.finalized = row.seq + 1]
                                                   ELSE @[r]],
                      !.fences[f].cancelled = @ + Cardinality(changed)],
            row)

(* A run that works may be given time; of several graces the one that ends first counts. *)
IsRipe(d, r) ==
    d.runs[r].status = "queued" \/ \E f \in OpenFencesOver(d, r) : d.fences[f].grace # "open"

(* Queued runs first. *)
Chunk(d, list) ==
    LET queued == {r \in list : d.runs[r].status = "queued"}
        size == IF Cardinality(list) < ChunkSize THEN Cardinality(list) ELSE ChunkSize
    IN  CHOOSE c \in SUBSET list : Cardinality(c) = size /\ (c \subseteq queued \/ queued \subseteq c)

(* The subtree is closed by the fence, so its ids are written down in one statement, without the lock. *)
StartDrain(p) ==
    /\ at[p].pc = "idle"
    /\ \E f \in {f \in DOMAIN db.fences : ~db.fences[f].drained} :
           LET list == {r \in DOMAIN db.runs : IsActive(db, r) /\ Covers(db, db.fences[f], r)}
           IN  at' = [at EXCEPT ![p] = Waiting(db, [op |-> "drain", fence |-> f, list |-> list])]
    /\ UNCHANGED <<db, holder, crashes>>

DrainOutcome(p) ==
    LET req == at[p].req
        row == at[p].row
        seen == at[p].snapshot[1]
        chunk == Chunk(seen, req.list)
        changed == {r \in chunk : IsActive(seen, r) /\ IsRipe(seen, r)}
        settled == changed \cup {r \in chunk : ~IsActive(seen, r)}
        after == Cancelled(db, row, req.fence, changed)
        won == ~db.fences[req.fence].drained \/ ~OneWinner
    IN  IF req.list # {}
        THEN Outcome(after, Waiting(after, [req EXCEPT !.list = @ \ settled]))
        ELSE Outcome(IF won THEN [db EXCEPT !.fences[req.fence].drained = TRUE,
                                            !.open_fences = IF row.open_fences = 0 THEN 0 ELSE row.open_fences - 1]
                     ELSE db,
                     Idle)

(* The clock. *)
EndGrace(f) ==
    /\ db.fences[f].grace = "open"
    /\ db' = [db EXCEPT !.fences[f].grace = "over"]
    /\ UNCHANGED <<holder, at, crashes>>
=============================================================================
