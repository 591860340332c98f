// Package otp asks a person before something that cannot be undone happens: start, cutover, redirect, rollback, delete.
//
//	Request ──▶ challenge (row: digest of the plan, hash of the code) ──▶ mail: the plan in words, the code
//	                    │                                                        │
//	                    ▼                                                        ▼
//	Redeem(id, code, plan) ── same plan? right code? first time? in time? ──▶ grant (row), used once by the action
//
// Invariants:
//
//   - A code opens exactly the plan it was asked for. The challenge keeps the SHA-256 of the plan's canonical JSON, and
//     Redeem computes it anew from what is about to happen. Another plan is refused and counts as a try.
//   - A code works once, for CodeTTL, with at most MaxTries tries. Redeem judges under the challenge's row lock, in a
//     transaction of its own that is committed also when it refuses: tries count whatever becomes of the caller, over
//     all servers and restarts.
//   - Codes, tokens and seeds are never stored readable: codes and tokens as HMACs under a key derived from
//     REHOME_SECRET (10^8 plain hashes are no secret), seeds sealed. They are in no error, no log and no audit entry;
//     the channel "log:" is the one exception, and says so.
//   - Every request, success and failure reaches the audit hook. What could not be audited is not approved.
//   - Rates are counted in the challenges table (limits.go), a mail that could not be sent included.
//
// An authenticator app (TOTP, RFC 6238) is a second channel: no mail is sent, the challenge binds the plan all the same,
// each code is accepted once for any challenge, and too many wrong ones lock the app for a while (never the mail).
//
// Confirmations is the second question before a deletion: a mail with a link and a code.
//
// The control database is authoritative for all of it. Time comes from Config.Now, so that servers sharing a control
// database should have clocks that agree to within seconds.
package otp
