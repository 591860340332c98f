package replicator

import (
	"slices"
	"strings"
)

// Undrained is the error of a wait for a marker that ended before every shard had it.
type Undrained struct {
	Read  bool     // the stream brought the marker; what is left is the shards' to apply
	Left  []string // shards that have not confirmed it, by name
	cause error
}

func (e *Undrained) Error() string {
	if !e.Read {
		return "wait for the marker: the stream from the source has not brought it: " + e.cause.Error()
	}
	return "wait for the marker on shard " + strings.Join(e.Left, ", ") + ": " + e.cause.Error()
}

// Unwrap gives why the wait ended.
func (e *Undrained) Unwrap() error { return e.cause }

// Undrained lists the shards that have not confirmed the marker and says whether the stream has brought it.
func (e *Undrained) Undrained() (left []string, read bool) { return e.Left, e.Read }

// undrained is the error for a marker as it stands.
func (e *Engine) undrained(m *marker, cause error) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	out := &Undrained{Read: m.read, cause: cause}
	for name := range m.left {
		out.Left = append(out.Left, name)
	}
	slices.Sort(out.Left)
	return out
}

// LaneName is the application_name of the sessions that apply a replication's changes at its shards.
func LaneName(replication string) string { return laneName(replication) }
