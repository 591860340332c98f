package shard

import (
	"time"

	"github.com/rehomedb/rehome/tenant"
)

// Kinds of databases.
const (
	KindSharded = "sharded" // made by CreateDatabase, spread over shards
	KindAdopted = "adopted" // an existing Postgres database under management
)

// States of a database.
const (
	Active   = "active"
	Stopped  = "stopped"
	Deleting = "deleting" // waits for the second confirmation; still served
	Deleted  = "deleted"  // the data stays until PurgeAfter
	Purged   = "purged"   // the data is gone; the name remains for its tombstone
)

// DefaultRealmKey is the realm key column of a database that names none.
const DefaultRealmKey = "realm_id"

// Shard is a Postgres server that holds realms.
type Shard struct {
	Name      string
	Ordinal   int    // from 0, never used again: the offset of the shard's sequence values
	Address   string // DSN without password
	Weight    int
	Zone      string
	Accepting bool // takes realms of new databases
	Version   int  // server_version_num
	SystemID  string
	Databases []string // those with rows on it, by name
	Buckets   int      // over all databases
	Bytes     int64    // size of those databases; -1: unreachable or not asked
	Reachable bool     // set by Shards only
	Error     string   // why it is unreachable
	CreatedAt time.Time
}

// Database is a tenant's logical database.
type Database struct {
	Name           string
	Kind           string
	State          string
	Owner          string
	RealmKey       string
	Upstream       string   // URL of the application behind the gateway
	SourceUpstream string   // the same before the cutover; "": Upstream
	Domains        []string // its own, in lower case
	Address        string   // kind adopted: its DSN without password
	SystemID       string   // kind adopted: system identifier of its server, when it could be read
	Shards         []string // kind sharded, by ordinal
	PlacementEpoch int64    // 0: being created, or adopted
	Bytes          int64    // -1 until MeasureDatabases fills it
	CreatedAt      time.Time
	DeletedAt      *time.Time
	PurgeAfter     *time.Time
	PurgedAt       *time.Time
}

// Creating reports whether the creation has not been finished; CreateDatabase goes on with it.
func (d Database) Creating() bool { return d.Kind == KindSharded && d.PlacementEpoch == 0 }

// Gone reports whether a purge has been finished: the name may be used again.
func (d Database) Gone() bool { return d.State == Purged && d.PurgedAt != nil }

// AddRequest adds a shard. Weight 0 means the default of 100; a nil Accepting means true.
type AddRequest struct {
	Name      string
	DSN       tenant.DSN // to a maintenance database, as a role that may CREATE DATABASE
	Weight    int
	Zone      string
	Accepting *bool
}

// ShardUpdate changes what is given.
type ShardUpdate struct {
	DSN       *tenant.DSN
	Weight    *int
	Zone      *string
	Accepting *bool
}

// CreateRequest creates a sharded database.
type CreateRequest struct {
	Name     string
	Shards   []string // empty: all that accept and have a weight
	RealmKey string   // default DefaultRealmKey
	Owner    string   // e-mail that codes go to
	Upstream string
	// SourceUpstream is where clients go until the cutover; empty: to Upstream.
	SourceUpstream string
	Collate        string // LC_COLLATE; empty: the server's
	CType          string // LC_CTYPE; empty: the server's
}

// AdoptRequest puts an existing Postgres database under management.
type AdoptRequest struct {
	Name     string
	DSN      tenant.DSN
	Owner    string
	Upstream string
	RealmKey string
}

// Update changes what is given. State is Active or Stopped.
type Update struct {
	Upstream       *string
	SourceUpstream *string
	Owner          *string
	State          *string
}

// Sort orders realms.
type Sort string

// Orders of realms.
const (
	BySize Sort = "size" // most rows first
	ByName Sort = "name"
)

// DefaultRealmLimit is how many realms are read when a query names no limit.
const DefaultRealmLimit = 1000

// RealmQuery says which realms to read.
type RealmQuery struct {
	Shard     string            // empty: all
	Sort      Sort              // default BySize
	Limit     int               // 0: DefaultRealmLimit
	TableKeys map[string]string // "schema.table" -> its realm key column; empty value: not a sharded table
}

// Realm is a realm's size on one shard. A realm seen on two shards is two rows: one of them is misplaced.
type Realm struct {
	Realm  string
	Bucket int
	Shard  string
	Rows   int64
	Pinned bool
}

// PurgeOptions says how a database is destroyed.
type PurgeOptions struct {
	Early     bool          // before its grace is over
	BatchRows int           // adopted: rows deleted at once; default 10000
	Pause     time.Duration // adopted: wait between batches; default 20 ms
}

// PurgeResult tells what a purge did.
type PurgeResult struct {
	Database    string
	Dropped     []string // where a Postgres database was dropped: shard names, or the adopted database's address
	RowsDeleted int64    // adopted: in batches
	Left        []string // what could not be removed and why, in words
}
