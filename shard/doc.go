// Package shard keeps the catalogue of an installation's Postgres servers (shards) and of the databases that live on
// them. It creates databases, spreads their realms, reads where realms are, and takes databases away again.
//
// # Who is authoritative
//
// The control database: rehome_control.shards, databases, database_shards and placements. What exists on a shard is
// made to agree with it, and every step may be repeated after a crash. Connection strings are stored sealed
// (internal/seal) and leave the package only as tenant.DSN; no error and no log line carries a password.
//
// # Creation
//
//	row in databases, placement_epoch 0          "being created": nobody is served
//	per shard: CREATE DATABASE rehome_new_<id>   a private name, ours beyond doubt: a crashed attempt drops it
//	           schema rehome, what is owned
//	           COMMENT 'rehome:<id>'             how a database is known as ours from outside
//	           RENAME TO <name>                  atomic; fails if somebody else took the name
//	placement epoch 1, placement_epoch = 1       served
//
// CreateDatabase of a name that is being created goes on where the former attempt stopped. A database of that name
// that is not ours is never touched: the attempt is taken back and refused.
//
// # Deletion
//
//	active, stopped ──BeginDelete──▶ deleting ──SoftDelete──▶ deleted ──Purge, after the grace──▶ purged
//	        ▲──────────────Undelete──────┴────────────────────────┘
//
// Only databases whose comment is ours are dropped from shards. An adopted database is emptied in throttled batches and
// then dropped if its role may.
package shard
