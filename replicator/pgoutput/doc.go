// Package pgoutput decodes the messages of Postgres' logical replication plugin pgoutput, protocol versions 1 and 2
// (PostgreSQL manual, "Logical Replication Message Formats").
//
// # Invariants
//
//   - Nothing is copied: values, prefixes and contents are slices of the caller's buffer and are valid until the caller
//     reuses it, for pglogrepl until the next ReceiveMessage. Names in Relation, Type and Origin messages, which are
//     rare, are strings of their own.
//   - A Message that is reused costs no allocation for row messages: its slices keep their capacity.
//   - Any input gives a message or an *Error that names the message and the offset of the damage. Nothing panics, and
//     no length that was read is believed before the bytes are there.
//   - A message is decoded whole: trailing bytes are an error, because they mean another protocol than the one decoded.
//
// # Streamed transactions
//
// In protocol 2 a large transaction may arrive before it commits, in blocks between StreamStart and StreamStop. Within
// a block, Relation, Type, Insert, Update, Delete, Truncate and Message carry the id of the transaction or
// sub-transaction that they belong to. Whether a message lies within a block is not written in it: Decoder remembers
// the blocks, Parse is told.
package pgoutput
