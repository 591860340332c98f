// Package cli is the command line of Rehome: one constructor a command, which takes what it needs from an App and
// leaves the work to a plain function.
//
// # Invariants
//
//   - Nothing is global. Run takes streams, environment and working directory, and returns the exit code; so tests and
//     the demonstration run the real commands inside their own process, also several at once.
//   - What was asked for goes to stdout: text for people, or with -o json exactly one document (with --watch and
//     --follow one object a line). Notes, prompts, progress and errors go to stderr.
//   - Every error is a *tenant.Error when it is printed: what failed and why, then what to do. Its Kind is the exit code.
//   - A secret is shown once, where it is made, and nowhere else. Credentials go to the host that they are for.
//   - An interrupt ends the watching, never the work: everything that lasts is done by the server.
package cli
