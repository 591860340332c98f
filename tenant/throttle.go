package tenant

import "time"

// Throttle is what an operator allows a replication at its source while it copies or verifies. It may be changed at any
// time. The zero value sets no limit of its own; what then still holds a copy back is in Care's comment.
type Throttle struct {
	MaxRate       int64   `json:"max_rate,omitempty"`        // bytes per second that the copy reads; 0: unlimited
	MaxLagBytes   int64   `json:"max_lag_bytes,omitempty"`   // how far another consumer of the source's WAL may be behind
	MaxLagSeconds float64 `json:"max_lag_seconds,omitempty"` // the same in time
	MaxSlotWAL    int64   `json:"max_slot_wal,omitempty"`    // bytes of WAL that a slot may hold back
	Query         string  `json:"query,omitempty"`           // a query at the source: one value, true or above 0 says wait
	CopyJobs      int     `json:"copy_jobs,omitempty"`       // instead of the number that the replication began with
	Off           bool    `json:"off,omitempty"`             // hold nothing back, whatever is seen
}

// Limits says whether anything may make reading wait.
func (t Throttle) Limits() bool {
	return !t.Off && (t.MaxRate > 0 || t.MaxLagBytes > 0 || t.MaxLagSeconds > 0 || t.MaxSlotWAL > 0 || t.Query != "")
}

// Care is how the source fares. Without a Throttle only one thing holds a copy back: another consumer whose slot is about
// to lose its WAL.
type Care struct {
	At         time.Time  `json:"at"`
	Throttled  string     `json:"throttled,omitempty"` // why reading waits just now
	Since      *time.Time `json:"since,omitempty"`     // since when
	CheckError string     `json:"check_error,omitempty"`
	CopyJobs   int        `json:"copy_jobs"`

	SlotStatus string  `json:"slot_status,omitempty"` // wal_status of pg_replication_slots
	SlotLimit  int64   `json:"slot_limit_bytes"`      // max_slot_wal_keep_size; -1: the source sets none
	SlotSafe   int64   `json:"slot_safe_bytes"`       // WAL that may still be written before the slot is in danger; -1: no limit
	WALRate    float64 `json:"wal_bytes_per_second"`  // what the source writes
	// SlotLostSeconds is when the slot loses its WAL if things go on like this; -1: not in sight, or not to be known.
	SlotLostSeconds float64 `json:"slot_lost_seconds"`
	Warning         string  `json:"warning,omitempty"` // what threatens, and what helps
}
