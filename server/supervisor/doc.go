// Package supervisor runs the replications of an installation: it takes leases, wires an engine to each replication,
// executes what people ask for, and publishes progress.
//
//	rehome_control.replications ──▶ lease ──▶ runner ─┬─ replicator.Engine   copy and stream
//	rehome_control.replication_commands ────▶         ├─ commands            pause resume cancel verify cutover complete
//	                                                  └─ reporter            progress rows and events
//
// # Invariants
//
//   - A replication is worked on by the server that holds its lease. Taking a lease raises its epoch, and the shards
//     refuse commits of an older epoch, so that a server which was stopped for a while and wakes up can do no harm.
//   - The control database is the authority for the phase. Every change of it is decided by tenant.Next from the row as
//     it is, in one transaction with its event, and refused to a server whose lease is gone.
//   - A command is executed by the lease's holder, is idempotent, and is finished in the control database only when its
//     effect is complete. A server that dies in the middle leaves it to the next one.
//   - The event of a final phase is the last of its replication: what ends it is answered in the same transaction.
//   - Losing the control database stops nothing that runs: the engine goes on, since the shards fence it themselves;
//     the lease is renewed when the database is back, unless another server took it.
package supervisor
