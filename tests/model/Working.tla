------------------------------ MODULE Working -------------------------------
(* claim_work, heartbeat and complete, as a worker calls them; and the reconciler that takes back leases.
   A worker remembers [op |-> "hold", run, attempt]; the attempt is what fences it once its lease has been taken back. *)
EXTENDS Cancelling

CONSTANTS MaxAttempts,
          AttemptFences    \* a completion and a renewal need the lease of their own attempt

(* Candidates are read without the lock. *)
StartClaim(p) ==
    /\ at[p].pc = "idle"
    /\ \E r \in DOMAIN db.runs : /\ db.runs[r].status = "queued"
                                 /\ at' = [at EXCEPT ![p] = Waiting(db, [op |-> "claim", run |-> r])]
    /\ UNCHANGED <<db, holder, crashes>>

ClaimOutcome(p) ==
    LET r == at[p].req.run
        row == at[p].row
        seen == at[p].snapshot[1]
        attempt == db.runs[r].attempt + 1
    IN  IF seen.runs[r].status # "queued" \/ IsFenced(seen, row, r) THEN Outcome(db, Idle)
        ELSE Outcome(WithEvent([db EXCEPT !.runs[r].status = "running", !.runs[r].attempt = attempt,
                                          !.runs[r].lease = "held", !.runs[r].started = row.seq + 1], row),
                     At("working", [op |-> "hold", run |-> r, attempt |-> attempt]))

StartReport(p) ==
    /\ at[p].pc = "working"
    /\ \E op \in {"renew", "complete", "acknowledge"} :
           /\ op = "acknowledge" => OpenFencesOver(db, at[p].req.run) # {}
           /\ at' = [at EXCEPT ![p] = Waiting(db, [at[p].req EXCEPT !.op = op])]
    /\ UNCHANGED <<db, holder, crashes>>

HoldsLease(d, req) ==
    /\ d.runs[req.run].status = "running"
    /\ AttemptFences => d.runs[req.run].lease = "held" /\ d.runs[req.run].attempt = req.attempt

(* Only the row of the lease is changed, and only if it is still the one of this attempt. *)
RenewOutcome(p) ==
    LET req == at[p].req
        seen == at[p].snapshot[1]
        renewed == HoldsLease(seen, req) /\ ~IsFenced(seen, at[p].row, req.run) /\ HoldsLease(db, req)
        covered == \E f \in DOMAIN db.fences : Covers(db, db.fences[f], req.run)
    IN  IF renewed THEN Outcome([db EXCEPT !.runs[req.run].late = @ \/ covered], At("working", [req EXCEPT !.op = "hold"]))
        ELSE IF IsFenced(seen, at[p].row, req.run) /\ HoldsLease(seen, req)
        THEN Outcome(db, At("working", [req EXCEPT !.op = "hold"]))    \* told to cancel
        ELSE Outcome(db, Idle)

CompleteOutcome(p) ==
    LET req == at[p].req
        row == at[p].row
        seen == at[p].snapshot[1]
    IN  IF ~HoldsLease(seen, req) \/ IsFenced(seen, row, req.run) THEN Outcome(db, Idle)
        ELSE Outcome(WithEvent([db EXCEPT !.runs[req.run].status = "completed", !.runs[req.run].lease = "none",
                                          !.runs[req.run].finalized = row.seq + 1,
                                          !.runs[req.run].finisher = req.attempt], row),
                     Idle)

(* The one thing that a fence still lets a worker say. *)
AcknowledgeOutcome(p) ==
    LET req == at[p].req
        seen == at[p].snapshot[1]
        over == OpenFencesOver(seen, req.run)
        first == CHOOSE f \in over : \A g \in over : f <= g
    IN  IF ~HoldsLease(seen, req) \/ over = {} THEN Outcome(db, Idle)
        ELSE Outcome(Cancelled(db, at[p].row, first, {req.run}), Idle)

StartExpiry(p) ==
    /\ at[p].pc = "idle"
    /\ \E r \in DOMAIN db.runs : /\ db.runs[r].lease = "due"
                                 /\ at' = [at EXCEPT ![p] = Waiting(db, [op |-> "expire", run |-> r])]
    /\ UNCHANGED <<db, holder, crashes>>

ExpiryOutcome(p) ==
    LET r == at[p].req.run
        row == at[p].row
        seen == at[p].snapshot[1]
        over == OpenFencesOver(seen, r)
        first == CHOOSE f \in over : \A g \in over : f <= g
        back == [db EXCEPT !.runs[r].lease = "none"]
    IN  CASE seen.runs[r].lease # "due" -> Outcome(db, Idle)
          [] IsFenced(seen, row, r) -> Outcome(Cancelled(db, row, first, {r}), Idle)
          [] seen.runs[r].attempt < MaxAttempts ->
                 Outcome(WithEvent([back EXCEPT !.runs[r].status = "queued"], row), Idle)
          [] OTHER -> Outcome(WithEvent([back EXCEPT !.runs[r].status = "failed", !.runs[r].finalized = row.seq + 1], row),
                              Idle)

(* The clock. *)
EndLease(r) ==
    /\ db.runs[r].lease = "held"
    /\ db' = [db EXCEPT !.runs[r].lease = "due"]
    /\ UNCHANGED <<holder, at, crashes>>
=============================================================================
