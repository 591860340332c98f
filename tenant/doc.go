// Package tenant holds the vocabulary that every other package of Rehome shares, and the pure state machine of a
// replication. It imports the standard library only, opens no connection and starts no goroutine.
//
// # Vocabulary
//
// An installation serves databases. A database is a tenant's logical database; its rows belong to realms, the unit of
// placement. Realms hash into 16384 buckets (Bucket); a Placement maps bucket ranges to shards, and a pinned realm
// overrides its bucket. Every change of a placement raises its epoch by one.
//
// # State machine
//
//	created → preparing → copying → catching_up → in_sync → cutting_over → cut_over → completed
//	          any of them → paused (with the reason and the remedy) → back; → cancelled
//	          cut_over → rolling_back → rolled_back
//
// Next is the only place where a phase follows from another. It decides; the server does.
package tenant
