// Package verify compares the two sides of a replication at one exact position: every row of every published table, and
// for each shard whether it owns the realms of the rows that it holds.
//
// Choosing the position and opening snapshots on both sides that hold exactly the commits up to it is the caller's work;
// Compare gets sessions that already see them. It reads only, and only within those sessions.
//
// # Method
//
// Each side reads each table once, in the database. A row's canonical text is ROW(columns…)::text under fixed settings,
// which tells NULL from empty, -0 from 0 and 1.0 from 1.00; the columns are taken by name, so that their physical order
// and dropped columns do not matter. Rows fall into 1024 classes by a hash of their identity. Of each class come back:
// the number of rows and the exact sums of two independently seeded 64-bit hashes of the canonical text. Sums do not
// depend on the order of rows and add up over shards:
//
//	sharded table:   source's class = sum over the shards' classes
//	reference table: source's class = each shard's class
//
// # Strength
//
// A class that differs in content passes unseen only if the count and both sums agree by chance: about 2^-128 for a
// difference that was not constructed on purpose. The hash is not cryptographic: verification guards against faults,
// not against someone who may write to both sides.
//
// Classes that differ are read again, keys and hashes only, sorted by the databases and merged here in constant memory,
// and the differing rows are named by key.
//
// # Limits
//
// Both servers must hash alike, so they must have the same byte order, and write values alike: an extension or a major
// version that prints a type differently shows as a difference, never as a false agreement.
package verify
