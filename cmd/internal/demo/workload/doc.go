// Package workload is the application that `rehome demo` and the end-to-end tests move: a multi-tenant schema with what
// real ones have, an HTTP application on top of it, writers that never stop, and checks of what is left afterwards.
//
// # The one rule that the checks rest on
//
// Every write is one transaction that first inserts an event with an id that the client chose:
//
//	BEGIN; INSERT INTO events … ON CONFLICT DO NOTHING; (already there: nothing more) the write itself; COMMIT
//
// So a client that does not know how a write ended sends it again with the same id, here or on the other side, and
// learns the truth. The Ledger remembers each id before it is first sent and whether it was acknowledged. At the end an
// acknowledged id must be there, on one shard only, with its effects; one that was never acknowledged must be there
// entirely or not at all; and nothing may be there that nobody sent.
//
// Money: an account's balance is its opening balance plus what came in less what went out, at all times.
package workload
