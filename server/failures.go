package server

import (
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// An address may send failureBurst wrong keys at once and one more every failureEvery. Keys have 130 random bits: the
// limit spares the control database and the log, it does not carry the security.
const (
	failureBurst = 20
	failureEvery = 3 * time.Second
	// maxAddresses bounds the memory that strangers can occupy; beyond it the quiet ones are forgotten.
	maxAddresses = 10_000
)

// failures counts wrong keys by address.
type failures struct {
	now func() time.Time

	mu   sync.Mutex
	seen map[string]*rate.Limiter
}

func newFailures(now func() time.Time) *failures {
	return &failures{now: now, seen: map[string]*rate.Limiter{}}
}

// exhausted reports whether an address has used up its wrong keys.
func (f *failures) exhausted(address string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	l := f.seen[network(address)]
	return l != nil && l.TokensAt(f.now()) < 1
}

// count notes a wrong key.
func (f *failures) count(address string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := f.now()
	if len(f.seen) >= maxAddresses {
		for a, l := range f.seen {
			if l.TokensAt(now) >= failureBurst {
				delete(f.seen, a)
			}
		}
		if len(f.seen) >= maxAddresses {
			clear(f.seen)
		}
	}
	key := network(address)
	l := f.seen[key]
	if l == nil {
		l = rate.NewLimiter(rate.Every(failureEvery), failureBurst)
		f.seen[key] = l
	}
	l.AllowN(now, 1)
}

// network is what one client holds: an IPv4 address, or the /64 of an IPv6 one.
func network(address string) string {
	ip, err := netip.ParseAddr(address)
	if err != nil || ip.Unmap().Is4() {
		return address
	}
	p, err := ip.Prefix(64)
	if err != nil {
		return address
	}
	return p.String()
}
