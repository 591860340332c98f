package demo

import (
	"time"

	"github.com/rehomedb/rehome/cmd/internal/demo/workload"
	"github.com/rehomedb/rehome/tenant"
)

// Check is one thing that was looked at: its figure in its unit, and in words what was found or is wrong.
type Check = workload.CheckResult

// Report is the one document of -o json.
type Report struct {
	OK       bool     `json:"ok"` // every step was done and every check holds
	Failed   *Failure `json:"failed,omitempty"`
	Checks   []Check  `json:"checks"`
	Scale    int      `json:"scale"`
	Shards   int      `json:"shards"`
	Postgres int      `json:"postgres"` // major version
	Rows     int64    `json:"rows"`     // at the start
	Realms   int      `json:"realms"`

	PauseMillis     float64 `json:"pause_ms"`              // of writes, as the certificate says
	GapDirectMillis float64 `json:"longest_gap_direct_ms"` // between two acknowledged writes of direct writers, around the cutover
	GapHTTPMillis   float64 `json:"longest_gap_http_ms"`   // of HTTP clients: until the redirect sent them on

	GapRollbackMillis float64 `json:"longest_gap_rollback_ms"` // of direct writers, around the rollback

	Rates       Rates                  `json:"rates"`
	Steps       []StepTime             `json:"durations"`
	Seconds     float64                `json:"seconds"` // all of it
	Connections []int                  `json:"connections"`
	Writers     *workload.WriterReport `json:"writers,omitempty"`
	Certificate *tenant.Certificate    `json:"certificate,omitempty"`
}

// Failure says which step went wrong.
type Failure struct {
	Step    int    `json:"step"`
	Title   string `json:"title"`
	Message string `json:"message"`
}

// Rates of the run, by the second.
type Rates struct {
	CopyRows   float64 `json:"copy_rows_per_second"`  // from the start of the replication until in sync
	CopyBytes  float64 `json:"copy_bytes_per_second"` // likewise
	VerifyRows float64 `json:"verify_rows_per_second"`
	Writes     float64 `json:"acknowledged_writes_per_second"`
}

// StepTime is how long a step took.
type StepTime struct {
	Step    int     `json:"step"`
	Title   string  `json:"title"`
	Seconds float64 `json:"seconds"`
}

func (r *Report) failed() int {
	n := 0
	for _, c := range r.Checks {
		if !c.OK {
			n++
		}
	}
	return n
}

// perSecond is a rate; 0 where the time is too short to tell.
func perSecond(n int64, d time.Duration) float64 {
	if d < time.Millisecond {
		return 0
	}
	return float64(n) / d.Seconds()
}

func (r *Report) acknowledged() int64 {
	if r.Writers == nil {
		return 0
	}
	return r.Writers.Counts.Acknowledged
}
