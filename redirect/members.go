package redirect

import (
	"sync"
	"time"
)

const (
	// maxClientsPerDatabase is how many clients (name, version, address) of one database a server tells apart within an
	// hour; all others are "other". It bounds what whoever invents a new User-Agent with each request can make us keep:
	// rows a minute in the control database, and memory here.
	maxClientsPerDatabase = 500
	// maxClients is the same over all databases.
	maxClients = 20000
	// membersKept is how long a client keeps its place.
	membersKept = time.Hour
)

// members are the clients that are told apart for the time being.
type members struct {
	now func() time.Time

	mu    sync.Mutex
	since time.Time
	of    map[string]map[key]struct{} // by database
	all   int
}

func newMembers(now func() time.Time) *members {
	return &members{now: now, of: map[string]map[key]struct{}{}}
}

// fold returns the key that a client is counted under: its own while there is room, or other's.
func (m *members) fold(k key) key {
	if k == k.other() {
		return k
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if now := m.now(); now.Sub(m.since) >= membersKept {
		m.since, m.all, m.of = now, 0, map[string]map[key]struct{}{}
	}
	known := m.of[k.database]
	if _, ok := known[k]; ok {
		return k
	}
	if len(known) >= maxClientsPerDatabase || m.all >= maxClients {
		return k.other()
	}
	if known == nil {
		known = map[key]struct{}{}
		m.of[k.database] = known
	}
	known[k] = struct{}{}
	m.all++
	return k
}
