package tenant

import "time"

// ShardFenced is how one shard was closed for a rollback.
type ShardFenced struct {
	Shard  string  `json:"shard"`
	Tables int     `json:"tables"`
	Tries  int     `json:"tries"` // LOCK statements that it took
	Millis float64 `json:"ms"`    // of locking
}

// Rollback is the record of a rollback that went through: what was closed, up to where each shard was carried back, and
// how the source's sequences go on. It is kept with the attempt and is not signed: it proves nothing to another
// installation, unlike a Certificate, which a rollback makes worthless.
type Rollback struct {
	Database     string          `json:"database"`
	Source       string          `json:"source"` // without credentials
	Target       string          `json:"target"`
	Replication  string          `json:"replication"`
	Attempt      string          `json:"attempt"`
	GateEpoch    int64           `json:"gate_epoch"`
	Placement    int64           `json:"placement_epoch"`
	SystemID     string          `json:"source_system_identifier"`
	Fenced       []ShardFenced   `json:"fenced"`
	Shards       []ShardPosition `json:"shards"` // in each shard's own WAL
	Verification string          `json:"verification"`
	Digest       string          `json:"verification_digest"`
	Sequences    []SequenceSet   `json:"sequences"` // at the source
	PauseMillis  float64         `json:"pause_ms"`
	Steps        []StepTime      `json:"steps"`
	ApprovedBy   string          `json:"approved_by"`
	DecidedAt    time.Time       `json:"decided_at"`
}
