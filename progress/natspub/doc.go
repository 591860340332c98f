// Package natspub tells the news: it publishes the events of package progress to a JetStream stream, on an embedded
// nats-server or on an outside one. It is the only package that knows NATS.
//
// # Who is authoritative
//
// The outbox (rehome_control.events). NATS never holds up the work: Run fails for no reason of NATS's, and what could not
// be published waits in its row. published_at is set only after JetStream has acknowledged the message.
//
// # Exactly the events, in order
//
//   - One publisher at a time drains an installation's outbox: the one that holds a session-level advisory lock of the
//     control database. It reads, publishes and marks on that same connection; if the connection is lost, so is the lock.
//     A predecessor that does not know yet can only repeat, in order, what its successor publishes too.
//   - Events are published one after the other, each acknowledged before the next, by id: so in the order of their
//     stream's sequence. Nothing is sent past an event that failed.
//   - A crash between acknowledgement and mark publishes an event again, with the same Nats-Msg-Id (the event's id), and
//     JetStream drops what it has seen within dedupWindow. A publisher that stays away longer than that between its
//     acknowledged publish and its mark may repeat one batch; consumers tell by the event's id, or by stream and
//     sequence.
//
// What a consumer gets is JetStream's promise to it: an ordered consumer keeps its own place and sees each event once over
// reconnects and restarts of the server; a durable one may get some again after the server was killed (acknowledgements
// not yet written are forgotten) and drops them by the event's id.
//
// # A message server that lost its memory
//
// The embedded server's store is a temporary directory by default and dies with the process; an outside server may be
// restored from an older state. So a publisher that begins, and one that finds the JetStream stream shorter than it
// was, publishes the events of the last refillWindow again. What the server still has it drops as duplicates
// (refillWindow is well below dedupWindow), what it lost it gets back in order. Older events are not repeated: they are
// in the outbox, for who asks the API. A store without any of the last hour's messages is as good as new, so a consumer
// that lived through such a loss may see events twice, never a gap within the window.
//
// With the embedded server each process has its own stream, and only that of the process which drains fills up: where
// several servers share a control database, use an outside NATS.
package natspub
