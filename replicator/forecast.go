package replicator

import (
	"time"

	"github.com/rehomedb/rehome/tenant"
)

const (
	// forecastWindow is over how long the source's WAL is averaged: long enough for checkpoints and a heartbeat's steps to
	// even out, short enough to follow a batch job.
	forecastWindow = 2 * time.Minute
	// forecastFrom is the least time that says something while the slot stands still, as it does during a copy.
	forecastFrom = 5 * time.Second
	// forecastMoving is the same while the slot advances now and then.
	forecastMoving = time.Minute
	// lossLook is how far ahead a loss is told of, lossSoon when it is told of again.
	lossLook, lossSoon = 30 * time.Minute, 10 * time.Minute
)

// walSample is the source's and the slot's state at one time.
type walSample struct {
	at      time.Time
	current tenant.LSN // the source's write position
	restart tenant.LSN // from where the slot needs WAL
	safe    int64      // safe_wal_size: what may be written before the slot is in danger; -1: no limit
}

// forecast tells from samples when a slot loses its WAL.
type forecast struct {
	samples []walSample
	told    time.Duration // the least threshold that was told of; 0: none
}

func (f *forecast) add(s walSample) {
	if n := len(f.samples); n > 0 && (s.current < f.samples[n-1].current || (s.safe < 0) != (f.samples[n-1].safe < 0)) {
		f.samples = nil // another server, or other settings
	}
	f.samples = append(f.samples, s)
	for len(f.samples) > 2 && s.at.Sub(f.samples[0].at) > forecastWindow {
		f.samples = f.samples[1:]
	}
}

// rate is the WAL that the source writes, in bytes per second.
func (f *forecast) rate() float64 {
	if len(f.samples) < 2 {
		return 0
	}
	a, b := f.samples[0], f.samples[len(f.samples)-1]
	d := b.at.Sub(a.at).Seconds()
	if d <= 0 {
		return 0
	}
	return float64(b.current-a.current) / d
}

// lostIn is when the room that is left is used up, at the pace at which it shrank over the window; false: not in sight, or
// not to be known. A source without max_slot_wal_keep_size never takes the WAL away: there it is the disk that ends, of
// which Postgres tells nothing.
func (f *forecast) lostIn() (time.Duration, bool) {
	if len(f.samples) == 0 {
		return 0, false
	}
	a, b := f.samples[0], f.samples[len(f.samples)-1]
	if b.safe < 0 {
		return 0, false
	}
	if b.safe == 0 {
		return 0, true // the next checkpoint may take it
	}
	enough := forecastFrom
	if a.restart != b.restart {
		enough = forecastMoving
	}
	d := b.at.Sub(a.at)
	shrunk := a.safe - b.safe
	if d < enough || shrunk <= 0 {
		return 0, false
	}
	seconds := float64(b.safe) / (float64(shrunk) / d.Seconds())
	const far = 365 * 24 * time.Hour // beyond it there is nothing to say, and a Duration ends at 292 years
	if seconds > far.Seconds() {
		return 0, false
	}
	return time.Duration(seconds * float64(time.Second)), true
}

// tell says whether a forecast is news: once when it comes below each threshold, and again after it went well above.
func (f *forecast) tell(left time.Duration, known bool) bool {
	switch {
	case !known || left > 2*lossLook:
		f.told = 0
	case left <= lossSoon && (f.told == 0 || f.told > lossSoon):
		f.told = lossSoon
		return true
	case left <= lossLook && f.told == 0:
		f.told = lossLook
		return true
	}
	return false
}
