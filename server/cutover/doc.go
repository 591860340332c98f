// Package cutover coordinates the move of write authority from a source to a database's shards, after the protocol whose
// SQL is package gate's.
//
//	intent ─ prelock ─ hold ─ fence ─ marker ─ drain ─ sequences ─ tail ─ committing ─┬─ COMMIT ─ decided ─ followed ─ finished
//	   │                └───────── bounded by the maximum pause ──────────────────────┘              (forward only)
//	   └─ any error, the deadline, a death: ROLLBACK, RESOLVE at the source ─ outcome source, or (a COMMIT was under way) decided
//
// # Who is authoritative
//
// The gate's row in the source's database decides, and nothing else. rehome_control.cutovers holds intent (attempt, the
// gate's epoch e), the last step and a draft of the report, so that any server can end what another began: RESOLVE e,
// FOLLOW what the gate says, write outcome and certificate. Steps before the decision leave nothing behind that would have
// to be undone but a row; steps after it are idempotent.
//
// # The way back
//
// The replication from the shards to the source is made before the pause. What it needs is looked for in the preflight: what
// makes it impossible refuses (findings no-way-back and no-way-back-…, which --no-way-back waves through), what endangers
// it is said (way-back-…). Before a rollback the schemas of both sides are compared (checkCatalogues).
//
// # Invariants
//
//   - The intent is durable before the gate is touched.
//   - What the certificate needs is durable before COMMIT is sent.
//   - A shard opens only for a state that Resolve returned or an answered COMMIT made.
//   - While the source cannot be asked, the attempt stays unfinished and the shards stay closed.
package cutover
