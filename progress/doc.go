// Package progress is the record of what happens: events, appended in the transaction that makes them true, and read in
// order by whoever watches. NATS (package natspub), server-sent events and `--watch` all show the rows of one table,
// rehome_control.events, as the same CloudEvents 1.0 JSON.
//
//	caller's transaction ── Append ──▶ rehome_control.events (outbox; the truth)
//	                                       │            │
//	           After, AfterID, Watch ◀─────┘            └────▶ natspub ──▶ JetStream (the news)
//
// # Who is authoritative
//
// The row. An event exists iff the transaction that appended it committed. NATS may lose everything without any loss of
// state; what it missed is published later, or read from here.
//
// # Order within a stream
//
// A stream (a replication's id, or "installation") is counted 1, 2, 3 … without gaps. Append takes the stream's row in
// rehome_control.event_sequences and holds it until the caller's transaction ends. So a rolled-back append gives its
// number back, and number n+1 can become visible only after n: what a reader sees of a stream is at every moment a
// prefix of it. The price: appends to one stream wait for each other's transactions. Append as the last thing of a short
// transaction; who appends to several streams in one transaction does so in the order of their names, or two such
// transactions may deadlock (Postgres then ends one of them, SQLSTATE 40P01).
//
// # Order over all streams
//
// Ids come from one sequence, and transactions that are open at the same time may commit in another order than that of
// their ids: id 7 can be visible while 6 is not yet. A reader that remembers 7 would never see 6. AfterID therefore
// stops before every event that a transaction might still bring:
//
//   - Append, before it draws an id, takes a shared advisory lock that lasts until its transaction ends, and whose key
//     says "my ids are greater than k" (k being the sequence's value at that moment).
//   - A reader first notes the sequence's value u, then looks up the least k among those locks in pg_locks, and only then
//     reads the table, up to min(u, k).
//
// An id ≤ min(u, k) was drawn before the look-up, and its owner's lock was gone by then: that transaction had ended, and
// Postgres makes a commit visible before it releases its locks. An id drawn later is greater than u. So ids are a true
// cursor for the whole installation, and only transactions that append hold the reader back: a horizon by transaction
// ids (pg_snapshot_xmin) would let any long transaction on that Postgres server stop the feed.
//
// The publisher does not wait for that horizon. It takes what is visible and unpublished, by id: order within each
// stream holds, a stuck transaction stops only its own stream, and nothing is skipped since no cursor is kept but
// published_at.
//
// # Watching
//
// Watch polls. While Log.Run runs, one connection LISTENs for all watchers of this process and wakes them at once; without
// it they notice within pollWithoutListener. A notification is a hint and never carries the event.
package progress
