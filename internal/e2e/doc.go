// Package e2e holds tests that run the real program: the binary as a process of its own, the command line as people type
// it, codes read from the mailbox, on real Postgres clusters. They kill what they test. The package has no code of its
// own.
package e2e
