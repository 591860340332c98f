// Package verify compares the two sides of a replication at one exact position: every row of every published table, and
// for each shard whether it owns the realms of the rows that it holds.
//
// Choosing the position and opening snapshots on both sides that hold exactly the commits up to it is the caller's work;
// Compare gets sessions that already see them. It reads only, and only within those sessions.
//
// # Method
//
// Each side reads each table once, in the database, in the order in which it lies there; the columns are taken by name, so
// that their physical order and dropped columns do not matter. A row is hashed as its canonical form: the bytes of
// integers, uuids and bytea, of everything else the text under fixed settings, which tells NULL from empty, -0 from 0 and
// 1.0 from 1.00 (rowhash.go). What comes back of a table, or of a part of it, is the number of its rows and the exact sums of
// two 64-bit hashes of each. Sums do not depend on the order of rows and add up over shards:
//
//	sharded table:   source's sums = sum over the shards'
//	reference table: source's sums = each shard's
//
// A large table is divided into ranges of blocks for several sessions, if there are more workers than Postgres itself would
// use for one scan, or rests to be made between them. Each side divides by its own storage, since sums add up; in sum the
// parts cost no more CPU than one scan (within 3% down to parts of 3 MiB).
//
// Where sums differ, the same is read by class: rows fall into 1024 by a hash of their identity, so that no more than a
// thousandth has to be read again for one row. Classes that differ are read again, keys and hashes only, sorted by the
// databases and merged here in constant memory, and the differing rows are named by key; those that are on both sides also
// by the columns that differ, for which the sides that have them are scanned once more, for hashes. Nothing of what a row
// holds but its key leaves the databases; a row without key is named by its text. These scans are the price of a fault only.
//
// # Strength
//
// A difference that was not constructed on purpose passes unseen only if the count and both sums agree by chance. Each sum
// is one of 64-bit hashes (Postgres' own hash_bytes_extended, Bob Jenkins' lookup3), chained over the columns: the hash of one
// is the seed of the next. A chain of n inputs takes two different rows for the same with a chance of at most n × 2^-64, and
// the two chains of a row, from different seeds, have nothing in common: about n² × 2^-128, which is below 2^-100 for the widest
// table there can be. Exact sums (not XOR, in which what is there twice vanishes) keep that: a changed row changes both, and
// several would have to cancel each other out in both. The hash is not cryptographic, as MD5 and SHA-256 are at several times
// the price of the whole scan: verification guards against faults, not against someone who may write to both sides. The
// digests of tables and of the whole, which people approve and certificates carry, are SHA-256 over counts and sums.
//
// # Parts
//
// A large table whose key begins with an integer or a uuid is divided by ranges of that key, the same on both sides; any other
// table is one part. Where rows do not lie in the order of their keys, as with random uuids, one scan sums up to 16 such ranges
// up, since each by itself would read nearly all pages (sweep.go). A part that was found equal is told to the caller, who may give it back when the comparison goes on at a
// later position: it is not read again then. The result says so: Verification.FirstLSN is the first of its positions,
// ComparedAt when the comparison at the oldest of them ended, and that is how old a cutover takes it to be. A part that was
// equal at P1 is equal at P2 as long as the stream applied exactly what lies between and nobody else wrote at the shard, which
// its fences refuse; a fault that came after P1 is not seen in it.
//
// # The way back
//
// After a cutover the same comparison shows that the source has what was written at the shards (Input.Home): with the
// snapshots of the shards each at the position that the source's snapshot has of it.
//
// # Locks
//
// What is read is locked (ACCESS SHARE) only while a part is read: not in rests, and not while the next part waits to be
// admitted. A part gives way to whoever waits for its lock for more than one or two seconds, on either side, so that a change of
// the schema does not wait for the end of a large table, with everybody behind it. That part, and any whose table was changed,
// rewritten or truncated after the position (which an older snapshot does not show as it was), is left out; the caller compares
// it at a later position. CREATE INDEX CONCURRENTLY waits for snapshots, not for locks: for the end of the comparison.
//
// # Schema
//
// Before the rows, each shard's schema is compared with the source's: columns, constraints, indexes, triggers and sequences
// of what the catalogue lists, by name. Definitions are compared as Postgres prints them, without what a restoration or
// another major version prints differently (see sameDefinition). Not differences: the order of columns, partitions, indexes
// that refuse no row, what Rehome makes itself, foreign keys that were accepted as not carried, increments of sequences,
// and the nullability of realm keys when there are several shards. Rows of a table that is missing, or lacks a column, are
// not compared; it is not equal then.
//
// # Limits
//
// Both servers must hash alike, so they must have the same byte order, and write values alike: an extension or a major
// version that prints a type differently shows as a difference, never as a false agreement.
package verify
