package tenant

// WayBackState is how the replication from the shards back to the source fares.
type WayBackState string

// States of a way back.
const (
	WayBackNone      WayBackState = "none"      // there is none: before a cutover, after a rollback, or it was not wanted
	WayBackPreparing WayBackState = "preparing" // what it needs is being made
	WayBackRunning   WayBackState = "running"   // it carries every write at the shards to the source
	WayBackBroken    WayBackState = "broken"    // it does not any more; Reason and Remedy say why and what to do
)

// WayBack is what replication-progress shows of the way back after a cutover.
type WayBack struct {
	State     WayBackState    `json:"state"`
	Reason    string          `json:"reason,omitempty"`
	Remedy    string          `json:"remedy,omitempty"`
	LagBytes  int64           `json:"lag_bytes"`      // of the shard that is furthest behind
	LagMillis float64         `json:"lag_ms"`         // age of the oldest transaction at a shard that the source does not have; 0 when none
	SlotWAL   int64           `json:"slot_wal_bytes"` // WAL held back, the most of any shard
	Shards    []ShardPosition `json:"shards,omitempty"`
}
