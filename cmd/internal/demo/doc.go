// Package demo is `rehome demo`: the whole journey of a database on one machine, with real programs and a person's part
// played by the package.
//
//	clients ──HTTP, WebSocket──▶ hosted server ──▶ old application ──▶ source          } until the cutover
//	direct writers ────────────────────────────────────────────────▶ source          }
//	                             own server (Rehome) ──copies, follows──▶ shards
//	clients ──redirected──▶ own server ──▶ new application ──────────────▶ shards      } after it
//
// Source and shards are temporary Postgres clusters. Both servers are `rehome server`, every step is a command of the
// command line, run by package cli in this process against the servers' HTTP API; codes are read from the mailboxes that
// the servers write to. Nothing is simulated but the person.
//
// # Invariants
//
//   - Clients write from before the first look at the source until after its deletion. What each was told is in a ledger,
//     and the checks at the end compare the shards with the ledger.
//   - A check that could not be carried out has failed. So has the demo, whose exit code is then not 0.
//   - Every wait is bounded and says what it waited for.
//   - Whatever happens, the clusters and the temporary directory are gone at the end, unless --keep asks for them.
package demo
