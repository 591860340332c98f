// Package notify tells the outside what happened: programs by webhooks (Standard Webhooks,
// https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md), people by e-mail.
//
//	rehome_control.events ── step ──▶ webhook_deliveries + River job ──▶ POST, signed ──▶ delivered | dead
//	  (outbox, the truth)      │           one a webhook and event           2xx · again later · given up
//	                           └────▶ notices            + River job ──▶ e-mail channel
//
// # Exactly once, and at least once
//
// Every server looks through the events, in the order of their ids (progress.Log.AfterID, which never leaves one out).
// Where one of them is news, it takes the row of news_cursor and, in that transaction, makes the deliveries, the mails and
// their River jobs, and moves the cursor. So each event is turned into deliveries once, whatever dies and however many
// servers there are. Sending can only be at least once: a server may die between the receiver's answer and its record.
// All tries of an event carry the same webhook-id, the event's own, by which a receiver recognises it.
//
// # Who is authoritative
//
// The rows of webhook_deliveries and notices: state, number of tries, next try. A River job is what wakes up for one; it
// asks for its next time itself (JobSnooze), so that the record and River's schedule are the same. A delivery names the
// one job that may send it, so asking for it again does not double it.
//
// # One dead receiver does not hold up others
//
// Each webhook has a River queue of its own, with few workers, and e-mails have theirs. Queues are added and removed while
// servers run; every server works on all of them.
package notify
