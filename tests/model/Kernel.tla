------------------------------- MODULE Kernel -------------------------------
(* All processes at work on one tree, and what must hold whatever they do. *)
EXTENDS Spawning, Working

CONSTANTS Spawners, Cancellers, Workers, Drainers, Expirers,    \* sets of processes
          Rounds,             \* how many requests each client makes; it repeats one until it has the answer
          StartTree,          \* the tree at the start
          SpawnRequests(_), FenceRequests(_)    \* what clients may ask for, given what is committed

VARIABLE left    \* requests that each client has still to make

Clients == Spawners \cup Cancellers
Processes == Clients \cup Workers \cup Drainers \cup Expirers
all == <<vars, left>>

Init ==
    /\ db = StartTree
    /\ holder = Nobody
    /\ at = [p \in Processes |-> Idle]
    /\ crashes = Crashes
    /\ left = [c \in Clients |-> Rounds]

Ask(c) ==
    /\ at[c].pc = "idle"
    /\ left[c] > 0
    /\ left' = [left EXCEPT ![c] = @ - 1]
    /\ \/ c \in Spawners /\ \E req \in SpawnRequests(db) : at' = [at EXCEPT ![c] = At("ask", req)]
       \/ c \in Cancellers /\ \E req \in FenceRequests(db) : at' = [at EXCEPT ![c] = Waiting(db, req)]
    /\ UNCHANGED <<db, holder, crashes>>

HearAnswer(c) ==
    /\ at[c].pc = "answer"
    /\ at' = [at EXCEPT ![c] = Idle]
    /\ UNCHANGED <<db, holder, crashes>>

Write(p) ==
    /\ at[p].pc = "write"
    /\ Commit(p, CASE at[p].req.op = "spawn" -> SpawnOutcome(p)
                   [] at[p].req.op = "fence" -> FenceOutcome(p)
                   [] at[p].req.op = "drain" -> DrainOutcome(p)
                   [] at[p].req.op = "claim" -> ClaimOutcome(p)
                   [] at[p].req.op = "renew" -> RenewOutcome(p)
                   [] at[p].req.op = "complete" -> CompleteOutcome(p)
                   [] at[p].req.op = "acknowledge" -> AcknowledgeOutcome(p)
                   [] at[p].req.op = "expire" -> ExpiryOutcome(p))

(* A client that hears nothing asks the same again; a worker and a reconciler start with nothing. *)
AfterCrash(p) ==
    CASE p \in Spawners -> At("ask", at[p].req)
      [] p \in Cancellers -> Waiting(db, at[p].req)
      [] OTHER -> Idle

(* What a process does when nothing goes wrong; StepOf and the clock are what liveness rests on. *)
StepOf(p) ==
    \/ p \in Clients /\ Ask(p)
    \/ /\ \/ p \in Spawners /\ (LookUpKey(p) \/ AskPolicy(p))
          \/ p \in Clients /\ HearAnswer(p)
          \/ p \in Drainers /\ StartDrain(p)
          \/ p \in Workers /\ (StartClaim(p) \/ StartReport(p))
          \/ p \in Expirers /\ StartExpiry(p)
          \/ Acquire(p)
          \/ Read(p)
          \/ Write(p)
       /\ UNCHANGED left

Clock ==
    /\ \/ \E r \in DOMAIN db.runs : EndLease(r)
       \/ \E f \in DOMAIN db.fences : EndGrace(f)
    /\ UNCHANGED left

(* All may rest only where nobody is in the middle of anything; elsewhere TLC reports a deadlock. *)
Rest ==
    /\ \A p \in Processes : at[p].pc = "idle"
    /\ UNCHANGED all

Next ==
    \/ \E p \in Processes : StepOf(p)
    \/ \E p \in Processes : Crash(p, AfterCrash(p)) /\ UNCHANGED left
    \/ Clock
    \/ Rest

Spec == Init /\ [][Next]_all

FairSpec == Spec /\ WF_all(Clock) /\ \A p \in Processes : WF_all(StepOf(p))

(* ---------------------------------------------- invariants ---------------------------------------------- *)
RECURSIVE Sum(_)
Sum(numbers) == IF numbers = <<>> THEN 0 ELSE Head(numbers) + Sum(Tail(numbers))

RunIds == DOMAIN db.runs
FenceIds == DOMAIN db.fences

(* Nothing that a fence covers is spawned, started, ended by itself or renewed above it. *)
NoEscape ==
    /\ \A f \in FenceIds, r \in RunIds :
           Covers(db, db.fences[f], r) =>
               /\ db.runs[r].spawned < db.fences[f].seq
               /\ db.runs[r].started < db.fences[f].seq
               /\ db.runs[r].status \in {"completed", "failed"} => db.runs[r].finalized < db.fences[f].seq
    /\ \A r \in RunIds : ~db.runs[r].late

(* Counted, not as the counters say. *)
LimitsOK ==
    /\ Cardinality(RunIds \ {Root}) <= MaxTotal
    /\ \A r \in RunIds : Depth(db, r) <= MaxDepth /\ Cardinality(ChildrenOf(db, r)) <= MaxFanout

OneRunPerKey ==
    /\ \A r, s \in RunIds :
           db.runs[r].parent = db.runs[s].parent /\ db.runs[r].key = db.runs[s].key => r = s
    /\ \A g, h \in DOMAIN db.groups :
           db.groups[g].orchestrator = db.groups[h].orchestrator /\ db.groups[g].key = db.groups[h].key => g = h

GroupAllOrNothing ==
    \A g \in DOMAIN db.groups :
        {db.runs[r].key : r \in MembersOf(db, g)} = {<<db.groups[g].key[1], i>> : i \in 1..db.groups[g].size}

SeqNoGap ==
    /\ db.seq = Len(db.events)
    /\ \A i \in DOMAIN db.events : db.events[i] = i

CountersTrue ==
    /\ db.children_total = Cardinality(RunIds \ {Root})
    /\ db.open_fences = Cardinality({f \in FenceIds : ~db.fences[f].drained})
    /\ \A r \in RunIds : db.runs[r].children = Cardinality(ChildrenOf(db, r))

(* Whoever has an answer in hand has the one that the key led to first; nobody is refused what a key already has. *)
RepeatsAgree ==
    \A c \in Spawners :
        at[c].pc = "answer" =>
            CASE at[c].answer.kind = "spawned" -> Earlier(db, at[c].req) = at[c].answer
              [] at[c].answer.kind = "refused" -> Earlier(db, at[c].req) = Nothing
              [] OTHER -> TRUE

(* A lease and a status never contradict each other; the root works without one. *)
LeasesMatch ==
    \A r \in RunIds \ {Root} : db.runs[r].attempt > 0 => (db.runs[r].status = "running" <=> db.runs[r].lease # "none")

(* A run is ended by its last attempt only. *)
NoStaleCompletion ==
    \A r \in RunIds : db.runs[r].finisher # 0 => db.runs[r].finisher = db.runs[r].attempt

(* Once a fence counts as drained nothing under it is active. *)
DrainedIsClosed ==
    \A f \in FenceIds : db.fences[f].drained => \A r \in RunIds : Covers(db, db.fences[f], r) => ~IsActive(db, r)

(* Each cancelled run is counted by one fence. *)
CountedOnce ==
    Sum([f \in FenceIds |-> db.fences[f].cancelled]) = Cardinality({r \in RunIds : db.runs[r].status = "cancelled"})

DecidedOnce ==
    \A f, g \in FenceIds :
        db.fences[f].scope = "group" /\ db.fences[g].scope = "group" /\ db.fences[f].group = db.fences[g].group => f = g

(* ---------------------------------------------- steps ---------------------------------------------- *)
(* What a spawn reads of the tree beside the locked row and the fences, both of which it reads under the lock. *)
SpawnFacts(d) ==
    [runs |-> [r \in DOMAIN d.runs |-> [parent |-> d.runs[r].parent, key |-> d.runs[r].key, group |-> d.runs[r].group,
                                        children |-> d.runs[r].children, active |-> IsActive(d, r)]],
     groups |-> [g \in DOMAIN d.groups |-> <<d.groups[g].orchestrator, d.groups[g].key, d.groups[g].size>>]]

(* It changes with the row's seq only: a spawn that finds the seq of its facts under the lock need not read them anew. *)
FactsStandStill == [][db'.seq = db.seq => SpawnFacts(db') = SpawnFacts(db)]_db

(* ---------------------------------------------- liveness ---------------------------------------------- *)
(* Every fence that has been committed, acknowledged or not, is drained in the end. *)
DrainsEnd == \A f \in 1..(Cardinality(Cancellers) * Rounds + Crashes) : (f \in FenceIds) ~> (f \in FenceIds /\ db.fences[f].drained)

ClientsAreAnswered == \A c \in Clients : (at[c].pc # "idle") ~> (at[c].pc = "idle")
=============================================================================
