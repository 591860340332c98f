// Package server is the HTTP face of an installation and the owner of its long-lived parts.
//
// # What runs
//
//	Run ─┬─ http      /livez /readyz /healthz /metrics, /v1 (API), /NAME/… (redirect.Gateway)
//	     ├─ gateway   routes and statistics (redirect)
//	     ├─ news      outbox → NATS (progress/natspub)
//	     ├─ wake      LISTEN on the control database, wakes streams and long polls
//	     ├─ jobs      River: purge of deleted databases, pruning, webhooks, mails
//	     ├─ notifier  events → deliveries to webhooks, mails (server/notify)
//	     └─ worker    the replications' supervisor, handed in as a Worker
//
// # Who is authoritative
//
// The control database is, for everything here. The server keeps no state that matters in memory: any server of an
// installation can answer any request, and a killed one loses nothing but its connections. Requests to a replication are
// rows (replication_commands) that the replication's owner executes, wherever it runs.
//
// # Invariants
//
//   - Nothing consequential happens without a person's code, bound to the plan that the server itself computed; the plan
//     is computed anew when the code is redeemed, so a changed world refuses the code.
//   - Every consequential request leaves an audit row, refused ones too.
//   - What a client reads of an error is a tenant.Error; anything else is "internal" and a request id.
//   - A stop drains first (no new requests, those in flight finish) and then cuts, with a cause.
package server
