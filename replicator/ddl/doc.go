// Package ddl follows changes of the source's schema while its rows are being streamed.
//
// # How a change travels
//
//	ALTER TABLE … at the source
//	   └─ event triggers (install.go) write the new state of what it touched into rehome.ddl, in the same transaction
//	        └─ the stream carries that row in its place
//	             └─ Apply compares it with the state that is known and makes the statements for the shards
//
// What is recorded is state, not text: columns with their numbers, constraints and indexes as Postgres prints them,
// labels of enums. DO blocks, functions, several statements in one string and search paths therefore all come out right,
// a column that was renamed is told from one that was dropped and made again, and nothing that somebody typed at the
// source is ever run at a shard.
//
// # Invariants
//
//   - The owner's command never fails for a reason of ours: whatever goes wrong in the functions is caught and recorded as
//     a row that says that the new state is not known, at which the replication pauses.
//   - Only the role that installed them writes rehome.ddl: the functions run as it, nobody else has a right on the table.
//   - What cannot be repeated at the shards just as it happened (values of a volatile default, ALTER TYPE … USING, rows of
//     a table that was filled before it was published) is a Problem, and pauses the replication before anything behind it.
//   - A Shape is immutable; Apply makes a new one.
package ddl
