// Package schema carries a source's schema to the shards: pg_dump reads it under the snapshot of the copy, and the package
// creates it at each shard in two parts, before and after the rows.
//
// # Invariants
//
//   - What runs at a shard comes from the archive's table of contents, item by item: no script is split, so no function
//     body can be taken for something else, and an error names its item.
//   - Pre-data is one transaction together with its row in rehome.ddl_done; so is each item of post-data. Both may be
//     repeated after a crash, with an archive dumped anew: items are known by type and name, not by number.
//   - Passwords reach pg_dump through its environment, never its command line. The archive lies in a private directory.
//   - Owners, privileges, publications, subscriptions, event triggers and foreign objects are not carried; preflight says so.
//
// rehome.ddl_done at the shard is authoritative for what is done there.
package schema
