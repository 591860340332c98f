// Package snapshot copies the rows of a source's snapshot to shards without decoding them: the bytes of a COPY stream go
// through, and only the realm key of each row is looked at to name its shard.
//
// # Who does what
//
// CopyLeaf runs one COPY … TO STDOUT at the source and one COPY … FROM STDIN at each shard, on sessions and in
// transactions that the caller opened. It never commits: the caller commits a shard's transaction only after CopyLeaf
// returned without error, and closes the sessions otherwise.
//
//	source ──CopyData──▶ Binary or Text (Write) ──256 KB buffers──▶ pipe per shard ──▶ COPY … FROM STDIN
//
// While a COPY runs, its messages are read and written on the session's connection itself (wireout.go, wirein.go), in
// reads of up to 256 KB, and a buffer goes out as one message. pgconn finds the session as it left it, or closed.
//
// # Invariants
//
//   - A stream that is cut, even at a row boundary, is an error: in binary the trailer must be seen, in text the source's
//     command must complete, and in both the source's row count equals the rows counted and the sum over the shards.
//   - A source's error reaches every shard as CopyFail; a shard's error cancels the source's COPY. The first error is the
//     one that is returned.
//   - Memory is bounded whatever stalls: a few buffers of 256 KB per shard.
//   - The rows of a leaf that was rewritten since the catalogue was read (CLUSTER, VACUUM FULL, TRUNCATE, ALTER TYPE) may
//     be invisible to the snapshot, silently. The leaf is locked against that and its filenode compared first.
package snapshot
