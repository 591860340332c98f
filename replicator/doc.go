// Package replicator is the engine: it copies a source's tables to the shards of a database, routes every row by its
// realm, and keeps the shards in step with the source by logical replication.
//
// # How the data walks
//
//	source ──CREATE SLOT, exported snapshot──▶ copy (replicator/snapshot) ──COPY──▶ shards
//	source ──pgoutput──▶ reader ─decode, route─▶ inbox of each lane ─group─▶ lane ─one transaction─▶ shard
//	                       ▲                                                   │
//	                       └────────── acknowledge what is durable ◀───────────┘
//
// One reader decodes the stream in commit order and appends each change to the inbox of the shards that own its row. A
// lane per shard takes whatever has gathered in its inbox, whole source transactions, and applies it as one target
// transaction. A lane that keeps up takes transactions one by one; a lane that is behind takes many at once.
//
// From version 14 on the source streams a large transaction before it ends, interleaved with others. The reader keeps each
// apart, in memory and beyond a bound in files without a name (spool.go), drops what is rolled back, and takes the rest
// when it commits as if it came whole just then. The first that is large is applied while it still comes, on sessions of its
// own, and commits in its turn (ahead.go, side.go); whatever is unusual about it is left to its turn.
//
// Within a group the changes of one table that follow each other become one statement over arrays (setwise.go), whose
// rows go in the order of their key (sorted.go); when such a statement does not hit just the rows that it names, the group is
// applied again, strictly in order. A transaction that is larger than a group comes in pieces, each of which is applied so
// (pieces.go). One that runs ahead inserts the rows of one table by a COPY that goes on from group to group (copyin.go).
//
// # Invariants
//
//   - Exactly once: the first statement of every target transaction appends to rehome.progress at that shard, where
//     the last row must still be the one that the lane knows (sequence, epoch and position). What is applied and how far
//     it is applied therefore commit together or not at all, and a worker that lost its lease commits nothing.
//   - A source transaction T is applied at a shard iff end(T) ≤ the shard's position. On a restart the reader sends
//     everything again from the slowest shard's position; a lane skips what its shard has.
//   - The slot is acknowledged only up to the least position that every shard has on disk, never within a transaction.
//   - Large values that the source did not send, of a row that moves to another shard, are carried from lane to lane
//     (carry.go). A lane waits for another only to have done something earlier in the stream, so none wait in a circle.
//   - A shard's rows, its schema and what it knows of the source's schema (rehome.shape) change together: a change of the
//     schema is applied in its place in the stream, alone, in the transaction that records it (package ddl, shape.go).
//   - A table copied under a later snapshot than the slot's carries a watermark: commits before it are in the copy and
//     are skipped for that table. Chunks of a table may each have their own; then a row's key tells which counts, and
//     constraints that such a copy cannot satisfy are built once the stream is past the largest.
//   - Nothing is overwritten to make an error go away: a conflict or a missing row is divergence and pauses the
//     replication with the row's key.
//
// # The way back
//
// After a cutover Back carries the shards' writes to the source: the same engine with its ends swapped, one per shard, each
// with one lane. Transactions of lanes begin with a row of rehome.progress, which both directions publish: a transaction
// that begins with one of the same replication is never applied, in neither direction, so that nothing goes round. The order
// between shards is not given: a lane whose row meets another shard's waits for it (backconflict.go).
//
// # Who is authoritative
//
// The shard's rehome.progress, rehome.copied and rehome.chunks are the truth about what is applied and copied; the control database's
// rows are for showing. The slot at the source is the truth about what can still be read.
package replicator
