package tenant

// ReplicationOptions is what start-replication was asked to do. It is part of the plan that a code is bound to.
type ReplicationOptions struct {
	RealmKey  string            `json:"realm_key"`            // column that names a row's realm; default "realm_id"
	TableKeys map[string]string `json:"table_keys,omitempty"` // per table ("schema.table") another realm key column
	Reference []string          `json:"reference,omitempty"`  // tables to copy whole to every shard
	// RealmsNeverChange are tables whose rows the owner asserts to keep their realm. With more than one shard their replica
	// identity may then lack the realm key: deletes go to all shards, and an update that hits no row pauses.
	RealmsNeverChange []string `json:"realms_never_change,omitempty"`

	Include  []string `json:"include,omitempty"`   // only these tables ("schema.table", * as wildcard); empty: all
	Exclude  []string `json:"exclude,omitempty"`   // not these
	CopyJobs int      `json:"copy_jobs,omitempty"` // parallel copy workers at the source; default 2
	// ChunkBytes: a table with more than this per shard is copied in chunks of about this size; default 1 GiB.
	ChunkBytes  int64    `json:"chunk_bytes,omitempty"`
	FixIdentity bool     `json:"fix_identity,omitempty"` // make replica identities that contain the realm key
	Accept      []string `json:"accept,omitempty"`       // findings accepted by name ("code:object")
	NoHeartbeat bool     `json:"no_heartbeat,omitempty"` // write nothing to the source on idle
	NoRunAhead  bool     `json:"no_run_ahead,omitempty"` // apply large transactions when they have ended, not while they come
}

// DefaultChunkBytes is the size up to which a table is copied in one transaction: below it COPY FREEZE, which needs the
// whole table, saves more than a repetition after a crash costs.
const DefaultChunkBytes = 1 << 30

// WithDefaults fills what was left out.
func (o ReplicationOptions) WithDefaults() ReplicationOptions {
	if o.RealmKey == "" {
		o.RealmKey = "realm_id"
	}
	if o.CopyJobs <= 0 {
		o.CopyJobs = 2
	}
	if o.ChunkBytes <= 0 {
		o.ChunkBytes = DefaultChunkBytes
	}
	return o
}

// SourceChange is something that Rehome changed at a source on the owner's behalf, with what undoes it. It is recorded
// before it is done, so that a crash leaves nothing that nobody knows of.
type SourceChange struct {
	Ordinal     int    `json:"ordinal"`
	Object      string `json:"object"`
	Description string `json:"description"`
	Do          string `json:"do"`   // SQL that makes the change; safe to run again
	Undo        string `json:"undo"` // SQL that takes it back; safe to run again
}
