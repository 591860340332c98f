// Package catdiff writes the catalogue of a Postgres database down as sorted text, so that tests can say what an action
// left behind, took away or changed: two snapshots are equal exactly if nothing in the catalogue differs that a person or
// a program could ever see.
//
// A snapshot names everything by its name, never by oid, so that it compares over a restore too. It holds, of the database:
// schemas, relations with their columns (dropped ones included), constraints, indexes, triggers with tgenabled, rules,
// policies, functions, types, sequences with their parameters, publications, subscriptions, event triggers, extensions,
// foreign data, default privileges, settings, comments, labels, large objects, owners and ACLs; and of the server what
// concerns the database: its slots, sessions of Rehome, prepared transactions, advisory locks, and all roles with their
// settings and memberships, tablespaces and replication origins. As a net below these lists, every object that has a
// dependency recorded (pg_depend, pg_shdepend) is listed by pg_identify_object, whatever its kind.
//
// Left out is what differs without anybody's doing: statistics, transaction ids, sizes, hint flags such as relhastriggers,
// which are lowered by VACUUM only, and the schemas of temporary tables, which Postgres makes once for each backend slot
// and keeps. Sequences' values have a section of their own, to be left out where they are meant to differ.
package catdiff
