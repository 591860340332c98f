// Package pgcluster starts real Postgres servers for a while: for tests and for `rehome demo`.
//
// A Cluster is one server in a directory of its own, with its own port on 127.0.0.1, a random password (SCRAM) and
// wal_level=logical. It is meant to be thrown away: unless Options.Fsync asks for it, nothing is flushed to disk.
//
// # Invariants
//
//   - A cluster never outlives the process that started it (Linux: the parent's death sends SIGQUIT to the postmaster).
//   - Postgres refuses to run as root. Started by root, the server and initdb run as user "postgres" if there is one,
//     else as "nobody".
//   - Port, password and DSN stay the same over Stop, Kill and Restart.
//   - A missing Postgres is an error that says what to install. It is never a reason to skip a test.
//
// The goroutine behind a running server ends with the server; Stop, Kill and Remove wait for it. Packages that check for
// leaks in each test give goleak.IgnoreCurrent for the cluster that Main shares.
package pgcluster
