package api

import "github.com/rehomedb/rehome/tenant"

// ThrottleUpdate changes what is given; 0 and "" take a limit away.
type ThrottleUpdate struct {
	MaxRate       *int64   `json:"max_rate,omitempty" minimum:"0" doc:"bytes per second that the copy reads from the source"`
	MaxLagBytes   *int64   `json:"max_lag_bytes,omitempty" minimum:"0" doc:"how far another consumer of the source's WAL may be behind"`
	MaxLagSeconds *float64 `json:"max_lag_seconds,omitempty" minimum:"0" doc:"the same in time"`
	MaxSlotWAL    *int64   `json:"max_slot_wal,omitempty" minimum:"0" doc:"bytes of WAL that a slot may hold back at the source"`
	Query         *string  `json:"query,omitempty" maxLength:"4000" doc:"a query at the source with one value: true or above 0 says wait"`
	CopyJobs      *int     `json:"copy_jobs,omitempty" minimum:"0" maximum:"32" doc:"tables copied at the same time; 0: as the replication began"`
	Off           *bool    `json:"off,omitempty" doc:"true takes all limits away and holds nothing back"`
}

// ThrottleStatus is what is set and what it does now.
type ThrottleStatus struct {
	Replication string          `json:"replication"`
	Phase       tenant.Phase    `json:"phase"`
	Set         tenant.Throttle `json:"set"`
	Throttled   string          `json:"throttled,omitempty"` // why reading from the source waits
	Care        *tenant.Care    `json:"care,omitempty"`      // how the source fares; none before the work began
}
