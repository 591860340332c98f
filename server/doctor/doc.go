// Package doctor compares what the control database says with what is there: slots, publications and gates at the
// sources, gates, fences, positions and placements at the shards, routes, leases, events. It names what differs, and
// mends what can be mended without a decision.
//
//	control database ─┐
//	sources ──────────┼─▶ look ─▶ judge ─▶ findings ─▶ report
//	shards ───────────┘   ▲                   └─▶ repairs (Fix) ─┐
//	                      └──────────── once more ◀──────────────┘
//
// # Invariants
//
//   - Looking changes nothing.
//   - A server that cannot be reached is a finding and never an error; it hides what would be found there.
//   - What may be the trace of work under way is looked at again before it is reported.
//   - A repair is something that Rehome would have done by itself, had it not been interrupted: it is idempotent, and
//     works through the package that owns the matter. Who may write is never decided here: shards follow the source's
//     gate, and a gate that contradicts the records is an alarm for a person.
//   - What no record names (a slot of an unknown replication) is named and never dropped.
//   - A repair is done when its finding is gone, not when it returned.
package doctor
