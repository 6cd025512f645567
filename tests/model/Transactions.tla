---------------------------- MODULE Transactions ----------------------------
(* How a transaction on a tree runs at READ COMMITTED, whatever it is for:

     wait     the statement that locks the tree's row has been sent
     locked   it has returned, with the row as it is now
     write    later statements have read what the commit depends on
     then     all is committed at once, the lock is released

   A statement's snapshot is taken when the statement starts, that is before it waits. PostgreSQL fetches the newest
   version only of the row that it waited for. So a statement that waits for the lock and reads other tables as well gets
   a fresh row beside tables as they were before the wait; ReadAfterLock = FALSE is that.                             *)
EXTENDS Tree

CONSTANTS Lock,             \* every change locks the tree's row first
          ReadAfterLock,    \* what the commit depends on is read by statements after the one that waits
          HeartbeatLocks,   \* a heartbeat, too, holds the lock from the check of the fences to its commit
          Crashes           \* how many crashes, of whichever process

VARIABLES db,        \* what is committed
          holder,    \* who holds the lock
          at,        \* where each process is, and what it has in its memory
          crashes    \* how many are still to come

vars == <<db, holder, at, crashes>>

Nobody == "nobody"
NoRequest == [op |-> "none"]
NoRow == [seq |-> 0, children_total |-> 0, open_fences |-> 0]

At(pc, req) == [pc |-> pc, req |-> req, row |-> NoRow, snapshot |-> <<>>, answer |-> Nothing, allowed |-> FALSE]
Idle == At("idle", NoRequest)

Locks(p) == Lock /\ (at[p].req.op = "renew" => HeartbeatLocks)

(* Process state on the way into the lock; d is what is committed as the statement starts. *)
Waiting(d, req) == [At("wait", req) EXCEPT !.snapshot = IF ReadAfterLock THEN <<>> ELSE <<d>>]

Acquire(p) ==
    /\ at[p].pc = "wait"
    /\ Locks(p) => holder = Nobody
    /\ holder' = IF Locks(p) THEN p ELSE holder
    /\ at' = [at EXCEPT ![p].pc = "locked", ![p].row = Row(db)]
    /\ UNCHANGED <<db, crashes>>

Read(p) ==
    /\ at[p].pc = "locked"
    /\ at' = [at EXCEPT ![p].pc = "write", ![p].snapshot = IF ReadAfterLock THEN <<db>> ELSE @]
    /\ UNCHANGED <<db, holder, crashes>>

Release(p) == holder' = IF holder = p THEN Nobody ELSE holder

(* An outcome is what a commit makes of the database, and where the process goes from there. *)
Outcome(d, next) == [db |-> d, next |-> next]

Commit(p, outcome) ==
    /\ db' = outcome.db
    /\ at' = [at EXCEPT ![p] = outcome.next]
    /\ Release(p)
    /\ UNCHANGED crashes

(* An event takes the next seq of the row that the transaction holds. *)
WithEvent(d, row) == [d EXCEPT !.seq = row.seq + 1, !.events = Append(@, row.seq + 1)]

(* The process dies: what was not committed is rolled back, the lock with it, and what it remembered is gone. *)
Crash(p, next) ==
    /\ crashes > 0
    /\ at[p].pc \in {"wait", "locked", "write", "answer", "working"}
    /\ crashes' = crashes - 1
    /\ at' = [at EXCEPT ![p] = next]
    /\ Release(p)
    /\ UNCHANGED db
=============================================================================
