package tenant

import "time"

// ShardPosition is how far one shard has come in a stream.
type ShardPosition struct {
	Shard   string `json:"shard"`
	LSN     LSN    `json:"lsn"`     // end of the last source transaction applied
	Durable LSN    `json:"durable"` // the same, but surely on the shard's disk
}

// TableProgress is one table's copy, in real counters.
type TableProgress struct {
	Table      string `json:"table"`
	State      string `json:"state"`       // waiting, copying, indexing, done
	RowsDone   int64  `json:"rows_done"`   // rows read from the source
	RowsTotal  int64  `json:"rows_total"`  // the planner's estimate until the copy is done, then exact
	BytesDone  int64  `json:"bytes_done"`  // bytes of the COPY stream
	BytesTotal int64  `json:"bytes_total"` // heap and TOAST at the source; an estimate of the stream
}

// Progress is what replication-progress shows. It comes from real counters; Percent never exceeds 100.
type Progress struct {
	Replication string          `json:"replication"`
	Phase       Phase           `json:"phase"`
	Reason      string          `json:"reason,omitempty"`
	Remedy      string          `json:"remedy,omitempty"`
	At          time.Time       `json:"at"`
	Step        string          `json:"step,omitempty"` // what is done just now, in words
	Percent     float64         `json:"percent"`        // of the copy
	RowsDone    int64           `json:"rows_done"`
	RowsTotal   int64           `json:"rows_total"`
	BytesDone   int64           `json:"bytes_done"`
	BytesTotal  int64           `json:"bytes_total"`
	BytesPerSec float64         `json:"bytes_per_second"`
	RowsPerSec  float64         `json:"rows_per_second"` // copied or applied
	ETASeconds  float64         `json:"eta_seconds"`     // -1: unknown
	Tables      []TableProgress `json:"tables,omitempty"`
	Shards      []ShardPosition `json:"shards,omitempty"`
	SourceLSN   LSN             `json:"source_lsn"`     // the source's write position
	LagBytes    int64           `json:"lag_bytes"`      // source write position less the slowest shard's position
	LagMillis   float64         `json:"lag_ms"`         // age of the oldest transaction not applied everywhere; 0 when none
	SlotWAL     int64           `json:"slot_wal_bytes"` // WAL that the slot holds back at the source
	// SpooledBytes is what is kept of large transactions that the source sends before they end.
	SpooledBytes int64 `json:"spooled_bytes,omitempty"`
	// AheadTxns counts large transactions that were applied while the source still sent them, since the server began.
	AheadTxns   int64  `json:"transactions_ahead,omitempty"`
	RowsAgain   int64  `json:"rows_copied_again"`  // lost by a crash or a lost connection and copied again
	BytesAgain  int64  `json:"bytes_copied_again"` // of work that a kill cut off, what was recorded about a second before
	AppliedTxns int64  `json:"applied_transactions"`
	AppliedRows int64  `json:"applied_rows"`
	Blocked     string `json:"blocked,omitempty"`   // who is in the way: pid and query
	Throttled   string `json:"throttled,omitempty"` // why reading from the source waits
	Care        *Care  `json:"care,omitempty"`      // how the source fares

	Verification *VerificationState `json:"verification,omitempty"`
	WayBack      *WayBack           `json:"way_back,omitempty"` // after a cutover: from the shards back to the source
}

// VerificationState is how fresh the proof is that both sides are equal.
type VerificationState struct {
	ID           string    `json:"id,omitempty"` // of the last one that was finished; empty: none was
	Clean        bool      `json:"clean"`
	LSN          LSN       `json:"lsn,omitempty"`
	ComparedAt   time.Time `json:"compared_at,omitzero"`
	Direction    Direction `json:"direction,omitempty"`     // in which it was made
	Outdated     bool      `json:"outdated,omitempty"`      // the writes changed sides since: neither a cutover nor a rollback takes it
	Continuous   bool      `json:"continuous"`              // it goes on by itself
	EverySeconds float64   `json:"every_seconds,omitempty"` // of the continuous mode
}

// TableVerification compares one table.
type TableVerification struct {
	Table      string `json:"table"`
	SourceRows int64  `json:"source_rows"`
	TargetRows int64  `json:"target_rows"`
	Equal      bool   `json:"equal"`
	Digest     string `json:"digest"`         // hex, of the source's side
	Misplaced  int64  `json:"misplaced_rows"` // rows on a shard that does not own their realm
	// ShardsDiffer are, after a cutover, the shards whose rows of this reference table are not the home shard's. It is equal all
	// the same: the source gets the home shard's.
	ShardsDiffer []string  `json:"shards_differ,omitempty"`
	Differences  []RowDiff `json:"differences,omitempty"` // the first ones, by key
	MoreDiffs    int64     `json:"more_differences,omitempty"`
	Skipped      string    `json:"skipped,omitempty"` // why its rows could not be compared; it is not equal then
	LSN          LSN       `json:"lsn,omitempty"`     // where it, or a part of it, was compared at an earlier position than the verification's
}

// RowDiff names one row that differs.
type RowDiff struct {
	Key     string   `json:"key"`               // identity columns as text, "bid=3, aid=17"
	Kind    string   `json:"kind"`              // missing, extra, different, misplaced
	Shard   string   `json:"shard,omitempty"`   // where it was seen or should be
	Columns []string `json:"columns,omitempty"` // of kind different: which columns differ, never what they hold
}

// SchemaDiff is one difference between the source's schema and a shard's.
type SchemaDiff struct {
	Object string `json:"object"`           // schema.table, schema.table.column (or constraint, index, trigger), schema.sequence
	Kind   string `json:"kind"`             // column-type, constraint-missing, index-invalid, …
	Source string `json:"source,omitempty"` // what the source has
	Target string `json:"target,omitempty"` // what the shard has
	Shard  string `json:"shard"`
}

// Verification is the result of comparing both sides at one position.
type Verification struct {
	ID          string              `json:"id"`
	Replication string              `json:"replication"`
	StartedAt   time.Time           `json:"started_at"`
	FinishedAt  time.Time           `json:"finished_at"`
	LSN         LSN                 `json:"lsn"`                         // the position at which both sides were compared
	FirstLSN    LSN                 `json:"first_lsn,omitempty"`         // of one that went on at several positions: the first
	ComparedAt  time.Time           `json:"compared_at,omitzero"`        // how fresh it is: when the comparison at the oldest of its positions ended
	Unfinished  int                 `json:"unfinished_tables,omitempty"` // tables that were not compared, or not all of them: not clean
	Clean       bool                `json:"clean"`
	Tables      []TableVerification `json:"tables"`
	Schema      []SchemaDiff        `json:"schema,omitempty"` // differences that nobody accepted: not clean
	MoreSchema  int64               `json:"more_schema_differences,omitempty"`
	Sequences   []SequenceValue     `json:"sequences,omitempty"`
	Rows        int64               `json:"rows"`   // source rows compared
	Digest      string              `json:"digest"` // hex SHA-256 over the tables' digests, counts and the position
	Attempts    int                 `json:"attempts"`
	Repair      *RowRepair          `json:"repair,omitempty"`
	// Direction is of whom the other side is the copy. With DirectionBack LSN is the source's position, and Shards are those of
	// the shards whose writes the source has just then.
	Direction Direction       `json:"direction,omitempty"`
	Shards    []ShardPosition `json:"shards,omitempty"`
	Error     string          `json:"error,omitempty"` // why it could not be finished
}

// Direction is which way the writes are carried that a verification compares.
type Direction string

// Directions.
const (
	DirectionForward Direction = ""     // from the source to the shards
	DirectionBack    Direction = "back" // from the shards to the source, after a cutover
)

// RowRepair is what was copied again before a verification's result.
type RowRepair struct {
	Rounds int             `json:"rounds"` // of comparing and copying
	Tables []RepairedTable `json:"tables,omitempty"`
	Left   string          `json:"left,omitempty"` // why something could not be repaired
}

// RepairedTable counts the rows of one table that were written anew at one shard.
type RepairedTable struct {
	Table    string `json:"table"`
	Shard    string `json:"shard"`
	Removed  int64  `json:"removed"`  // rows that were there
	Inserted int64  `json:"inserted"` // rows as the source has them
}

// SequenceValue is a sequence's state.
type SequenceValue struct {
	Name      TableName `json:"name"`
	Last      int64     `json:"last"`
	Called    bool      `json:"called"`
	Increment int64     `json:"increment"`
	Min       int64     `json:"min"`
	Max       int64     `json:"max"`
	Start     int64     `json:"start,omitempty"`
	Cycle     bool      `json:"cycle,omitempty"`
}

// SequenceSet is the value that a sequence was set to on one shard.
type SequenceSet struct {
	Shard string `json:"shard"`
	Name  string `json:"name"`
	Value int64  `json:"value"`
}

// StepTime is how long one step of a cutover took.
type StepTime struct {
	Step     string  `json:"step"`
	Millis   float64 `json:"ms"`
	AtMillis float64 `json:"at_ms,omitempty"`    // when it began, since the attempt did; some run side by side
	Pause    bool    `json:"in_pause,omitempty"` // writers waited meanwhile
}

// Certificate proves a cutover. Signature is ed25519 by the installation's key over the canonical JSON of the rest
// (docs/certificate.md).
type Certificate struct {
	Version      int             `json:"version"` // 1
	Installation string          `json:"installation"`
	Database     string          `json:"database"`
	Source       string          `json:"source"` // without credentials
	Target       string          `json:"target"`
	Replication  string          `json:"replication"`
	Attempt      string          `json:"attempt"` // the gate's attempt
	GateEpoch    int64           `json:"gate_epoch"`
	Placement    int64           `json:"placement_epoch"`
	SystemID     string          `json:"source_system_identifier"`
	MarkerLSN    LSN             `json:"marker_lsn"`
	Shards       []ShardPosition `json:"shards"`
	Verification string          `json:"verification"`
	Digest       string          `json:"verification_digest"`
	VerifiedLSN  LSN             `json:"verified_lsn"`
	Sequences    []SequenceSet   `json:"sequences"`
	PauseMillis  float64         `json:"pause_ms"`
	Steps        []StepTime      `json:"steps"`
	ApprovedBy   string          `json:"approved_by"`
	WayBack      string          `json:"way_back,omitempty"` // as the target opened: open (every write there goes back to the source), none
	DecidedAt    time.Time       `json:"decided_at"`
	PublicKey    string          `json:"public_key"`          // base64
	Signature    string          `json:"signature,omitempty"` // base64
}
