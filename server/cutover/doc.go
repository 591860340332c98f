// Package cutover coordinates the move of write authority from a source to a database's shards, after the protocol whose
// SQL is package gate's.
//
//	intent ─ prelock ─ hold ─ fence ─ marker ─ drain ─ sequences ─ tail ─ committing ─┬─ COMMIT ─ decided ─ followed ─ finished
//	   │                └───────── bounded by the maximum pause ──────────────────────┘              (forward only)
//	   └─ any error, the deadline, a death: ROLLBACK, RESOLVE at the source ─ outcome source, or (a COMMIT was under way) decided
//
// A rollback goes the other way. What was done at the shards before the decision is undone by following the resolved gate,
// which is at a higher epoch than their fences:
//
//	intent ─ prelock ─ hold ─ lock ─ fence (R1) ─ marker ─ drain (R2) ─ take ─ sequences ─ committing ─┬─ COMMIT (R3) ─ decided ─ finished
//	   └─ any error, the deadline, a death: ROLLBACK, RESOLVE, FOLLOW (the shards open again) ─ outcome target, or decided
//
// # One place decides
//
// Decide (decide.go) tells won from lost, for whoever runs, takes back or finds an attempt, in either direction; order.go is
// the one table of the steps, of which may follow which, and of what any server does that finds an attempt there. Both are
// pure. A model (model_test.go) explores every interleaving of attempts, deaths, late COMMITs, resolvers, rivals and followers.
//
// # Who is authoritative
//
// The gate's row in the source's database decides, and nothing else. rehome_control.cutovers holds intent (attempt, the
// gate's epoch e), the last step and a draft of the report, so that any server can end what another began: RESOLVE e,
// FOLLOW what the gate says, write outcome and certificate. A cutover's steps before the decision leave nothing behind that
// would have to be undone but a row and the way back (Tidy drops it); steps after a decision are idempotent. A replication
// has one unfinished attempt at most.
//
// # The way back
//
// The replication from the shards to the source is made before the pause. What it needs is looked for in the preflight: what
// makes it impossible refuses (findings no-way-back and no-way-back-…, which --no-way-back waves through), what endangers
// it is said (way-back-…). Before a rollback the schemas of both sides are compared (checkCatalogues). It is dropped whenever
// an attempt ends with the source writing.
//
// # Invariants
//
//   - The intent is durable before the gate is touched.
//   - What the certificate needs is durable before COMMIT is sent.
//   - A shard opens only for a state that Resolve returned or an answered COMMIT made.
//   - The source opens only when every shard's fence was committed, with an answer, and drained.
//   - While the source cannot be asked, the attempt stays unfinished and the shards stay closed, unless a person declares
//     the source destroyed (ForceTarget).
//   - A record that says "decided" beside a gate that does not moves nothing: the source lost something.
package cutover
