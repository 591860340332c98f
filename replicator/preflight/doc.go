// Package preflight finds, before a byte moves, what would go wrong: findings with a severity, a stable code, the object,
// what is wrong and the remedy.
//
// # Invariants
//
//   - It changes nothing: every session reads in READ ONLY transactions, one per part, none longer than partTimeout.
//   - A server that cannot be reached is a finding, not an error. A part that fails (say, for a privilege) is a finding too
//     (not-checked), and the others go on.
//   - No finding contains a password.
//
// # Codes
//
// Connections: source-unreachable, target-unreachable, same-database, replication-connection, few-connections.
//
// The source as a server: wal-level, source-is-standby, no-free-slot, no-free-walsender, slot-wal-limit, fsync-off,
// two-phase, pg-dump-missing, pg-dump-too-old, source-too-old, long-transaction, prepared-transaction, clock-skew,
// rehome-schema-present.
//
// Privileges: no-replication-privilege, no-create-privilege, not-owner, no-select, row-security, row-security-forced,
// session-replication-role, schema-changes-pause.
//
// Tables: nothing-to-replicate, pattern-matches-nothing, no-identity, realm-not-in-identity, partition-identity-differs,
// identity-full, realm-key-missing, realm-key-nullable, realm-key-null, realm-key-not-checked,
// realm-key-type, realm-key-collation, constraint-without-realm, foreign-key-to-excluded, view-on-excluded,
// inherits-excluded, trigger-always, triggers, text-format.
//
// What is not carried: large-objects, foreign-table, unlogged-table, unlogged-partition, event-trigger, publication,
// subscription, materialized-view, grants-not-carried, tablespaces, sequences, sequence-exhausted.
//
// Targets: target-too-old, target-older, target-is-standby, target-not-empty, target-has-earlier-run, extension-missing,
// extension-version, extension-not-creatable, role-missing, collation-missing, access-method-missing, encoding,
// collation-differs, disk-space, disk-space-unknown.
//
// About the check itself: not-checked, accept-unused.
package preflight
