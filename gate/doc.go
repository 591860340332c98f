// Package gate is the SQL of the protocol that decides who may write: the gate rows, the fence triggers and the marker.
// It holds no state of its own and starts nothing that outlives a call.
//
// # Who is authoritative
//
// One row, rehome.gate at the source, decides. It changes in the same transaction as the source's fence triggers, so
// what it says and what the tables accept cannot differ. The gate row at each shard follows it and only moves up.
//
//	source: (e, source) ──CAS, fence, COMMIT──▶ (e+1, target)          the decision
//	        (e, source) ──RESOLVE────────────▶ (e+2, source)           the attempt of e is aborted for ever
//	        (e, target) ──CAS, fence off, COMMIT──▶ (e+1, source)      the decision of a rollback
//	        (e, target) ──RESOLVE────────────▶ (e+2, target)           the rollback of e is aborted for ever
//	shard:  (0, closed) ──FOLLOW, E > epoch──▶ (E, target) open, or (E, source) closed
//	        (e, target) ──a rollback's fence─▶ (e+1, closed)           before its decision; RESOLVE and FOLLOW open it again
//
// # Invariants
//
//   - At no instant do both sides accept writes: a shard opens only after the source's COMMIT is known, and a stale
//     "open" cannot arrive, because a shard's epoch only rises. The source opens only when all shards were closed.
//   - The outcome of an attempt is never read by SELECT alone: a late COMMIT can follow it. Resolve compares and sets
//     the same row, so it waits for, or ends, whoever holds it.
//   - A coordinator that vanishes leaves the source open: everything before the decision is one open transaction, which
//     idle_in_transaction_session_timeout ends.
//   - Nobody but the owner of schema rehome can write a gate, a marker or a heartbeat. The fence function reads the gate
//     as its owner (SECURITY DEFINER, all that it uses named with its schema), because sessions of any role trip it.
//   - Writers are never starved: a fence that cannot be had at once lets go and tries again later.
//
// No superuser is needed: the owner of the tables with CREATE on the database is enough (LOCK TABLE, CREATE TRIGGER and
// ENABLE ALWAYS TRIGGER ask for no more).
package gate
