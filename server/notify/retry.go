package notify

import (
	"math"
	"math/rand/v2"
	"time"
)

// Policy says when a failed try is repeated, and when no more.
type Policy struct {
	First  time.Duration // pause after the first try
	Factor float64       // each pause is so many times the one before
	Max    time.Duration // the longest pause
	Tries  int           // all of them, the first included
	// MaxAge ends it too: for what lay in wait so long that Tries were never made. 0: no bound.
	MaxAge time.Duration
}

const (
	// jitter spreads what failed together: pauses are up to this share longer or shorter.
	jitter = 0.2
	// queuedFor is how much longer than its tries may last a delivery is kept that waits behind others.
	queuedFor = 24 * time.Hour
)

// webhookPolicy: 5 s, 15 s, 45 s, 2 min, 7 min, 20 min, 1 h, 3 h, 9 h, 10 h, 10 h: a day and a half, in which a receiver can
// be mended. The specification asks for about this ("Deliverability and reliability").
func webhookPolicy() Policy {
	p := Policy{First: 5 * time.Second, Factor: 3, Max: 10 * time.Hour, Tries: 12}
	p.MaxAge = p.total() + queuedFor
	return p
}

// mailPolicy: a mail server that greylists answers after minutes; news that is a day old is none.
func mailPolicy() Policy {
	p := Policy{First: 15 * time.Second, Factor: 4, Max: 4 * time.Hour, Tries: 10}
	p.MaxAge = p.total() + queuedFor
	return p
}

// pause is how long to wait after so many tries, without jitter.
func (p Policy) pause(tries int) time.Duration {
	d := float64(p.First) * math.Pow(p.Factor, float64(tries-1))
	if d > float64(p.Max) {
		return p.Max
	}
	return time.Duration(d)
}

func (p Policy) total() time.Duration {
	var all time.Duration
	for n := 1; n < p.Tries; n++ {
		all += p.pause(n)
	}
	return all
}

// next is how long to wait after so many tries; false: no more. A receiver that asks for more time (Retry-After) gets it,
// up to the longest pause.
func (p Policy) next(tries int, age, asked time.Duration) (time.Duration, bool) {
	if tries >= p.Tries || (p.MaxAge > 0 && age > p.MaxAge) {
		return 0, false
	}
	d := time.Duration(float64(p.pause(tries)) * (1 - jitter + 2*jitter*rand.Float64())) //nolint:gosec // no secret depends on it
	return max(d, min(asked, p.Max)), true
}
