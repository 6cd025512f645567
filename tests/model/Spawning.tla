------------------------------ MODULE Spawning ------------------------------
(* spawn_run and spawn_group: facts, decision, lock, the same again in later statements, commit.
   A request is [op |-> "spawn", caller, key, n]; n = 0 is one run, otherwise a group of n.                          *)
EXTENDS Transactions

CONSTANTS UniqueKeys,           \* the unique indexes on keys exist
          CollisionAborts,      \* a child whose key is taken rolls its group back (or is left out of it)
          DenialRechecksKey     \* a denial, too, is written under the lock after another look at the key

(* Facts are read without the lock, one statement after the other: the key first, then the counters. *)
LookUpKey(p) ==
    LET earlier == Earlier(db, at[p].req)
    IN  /\ at[p].pc = "ask"
        /\ at' = [at EXCEPT ![p] = IF earlier = Nothing THEN At("facts", at[p].req)
                                   ELSE [At("answer", at[p].req) EXCEPT !.answer = earlier]]
        /\ UNCHANGED <<db, holder, crashes>>

AskPolicy(p) ==
    LET req == at[p].req
        allowed == WithinLimits(db, Row(db), req)
    IN  /\ at[p].pc = "facts"
        /\ at' = [at EXCEPT ![p] = IF allowed \/ DenialRechecksKey
                                   THEN [Waiting(db, req) EXCEPT !.allowed = allowed]
                                   ELSE [At("answer", req) EXCEPT !.answer = Refused]]
        /\ UNCHANGED <<db, holder, crashes>>

(* The database with the runs of this request. *)
Inserted(d, row, req) ==
    LET seq == row.seq + 1
        group == IF req.n = 0 THEN 0 ELSE Len(d.groups) + 1
        Make(key) == Run(req.caller, key, group, "queued", seq)
        free == IF req.n = 0 THEN <<req.key>>
                ELSE SelectSeq([i \in 1..req.n |-> <<req.key[1], i>>], LAMBDA k : CollisionAborts \/ ~Taken(d, req.caller, k))
        made == [i \in DOMAIN free |-> Make(free[i])]
    IN  WithEvent(
            [d EXCEPT !.runs = [@ EXCEPT ![req.caller].children = @ + Len(made)] \o made,
                      !.groups = IF req.n = 0 THEN @
                                 ELSE Append(@, [orchestrator |-> req.caller, key |-> req.key, size |-> req.n,
                                                 decided |-> FALSE]),
                      !.children_total = row.children_total + Len(made)],
            row)

IndexRefuses(d, req) ==
    /\ UniqueKeys
    /\ \/ GroupsWith(d, req) # {} /\ req.n # 0
       \/ CollisionAborts /\ \E k \in KeysOf(req) : Taken(d, req.caller, k)

SpawnOutcome(p) ==
    LET req == at[p].req
        row == at[p].row
        seen == at[p].snapshot[1]
        earlier == Earlier(seen, req)
        Answer(d, answer) == Outcome(d, [At("answer", req) EXCEPT !.answer = answer])
        after == Inserted(db, row, req)
    IN  CASE earlier # Nothing -> Answer(db, earlier)
          [] ~IsActive(seen, req.caller) \/ IsFenced(seen, row, req.caller) -> Answer(db, Refused)
          [] ~at[p].allowed -> Answer(WithEvent(db, row), Refused)
          [] ~WithinLimits(seen, row, req) -> Outcome(db, At("facts", req))    \* ask again, with fresh counters
          [] CollisionAborts /\ \E k \in KeysOf(req) : Taken(seen, req.caller, k) -> Answer(db, Conflict)
          [] IndexRefuses(db, req) -> Outcome(db, At("ask", req))
          [] OTHER -> Answer(after, Spawned((DOMAIN after.runs) \ (DOMAIN db.runs)))
=============================================================================
