package torture

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"time"
)

// Kind is a sort of fault.
type Kind string

// The faults.
const (
	ServerKill    Kind = "server kill -9"
	ServerStop    Kind = "server SIGSTOP"
	ServerRestart Kind = "server restart"
	SourceKill    Kind = "source kill -9"
	ShardKill     Kind = "shard kill -9"
	ControlKill   Kind = "control kill -9"
	NATSStop      Kind = "nats stop"
	NetLatency    Kind = "net latency"
	NetCut        Kind = "net cut"
	NetHalfOpen   Kind = "net half-open" // silence, then the connections end
	NetStall      Kind = "net stall"     // silence, then all that was sent arrives
	NetBandwidth  Kind = "net bandwidth"
)

// Fault is one thing that goes wrong.
type Fault struct {
	At     time.Duration // since the plan's begin
	Kind   Kind
	Target string
	For    time.Duration // until it is mended
	Amount int           // NetLatency: milliseconds; NetBandwidth: bytes a second
}

func (f Fault) String() string {
	s := fmt.Sprintf("%6.1fs %s of %s for %.1fs", f.At.Seconds(), f.Kind, f.Target, f.For.Seconds())
	if f.Amount != 0 {
		s += fmt.Sprintf(" (%d)", f.Amount)
	}
	return s
}

// PlanConfig says what a plan may break.
type PlanConfig struct {
	Seed    uint64
	Length  time.Duration // no fault begins later, and all are mended by then
	Gap     time.Duration // between two faults, on average
	Lease   time.Duration // a server is stopped for longer than this
	Servers []string
	Shards  []string
	Source  string
	Control string
	NATS    string
	Links   []string // of the network
	// Quiet is how often nothing is broken for a while, so that what only goes wrong at rest is seen too; 0: never.
	Quiet time.Duration
}

// quietLength is how long a quiet time is: enough for the longest back-off of the replicator, and some seconds in sync.
const quietLength = 25 * time.Second

// Plan draws the faults, by time. One target has one fault at a time; different ones overlap. Every kind comes as often as
// its place in the deck says before any comes again.
func Plan(c PlanConfig) []Fault {
	r := newRand(c.Seed, 0)
	busy := map[string]time.Duration{}
	var deck, plan []Fault
	at, quiet := time.Duration(0), c.Quiet
	for {
		at += time.Duration((0.3 + 1.4*r.Float64()) * float64(c.Gap))
		if c.Quiet > 0 && at > quiet {
			for _, until := range busy {
				at = max(at, until)
			}
			at += quietLength
			quiet = at + c.Quiet
		}
		if len(deck) == 0 {
			deck = c.deck(r)
		}
		// The first of the deck whose target is whole.
		i := slices.IndexFunc(deck, func(f Fault) bool { return busy[f.Target] <= at && at+f.For <= c.Length })
		if at >= c.Length {
			return plan
		}
		if i < 0 {
			continue
		}
		f := deck[i]
		deck = slices.Delete(deck, i, i+1)
		f.At = at
		busy[f.Target] = at + f.For + time.Second // it has come back before it goes again
		plan = append(plan, f)
	}
}

// deck is each fault on each target, shuffled.
func (c PlanConfig) deck(r *rand.Rand) []Fault {
	var d []Fault
	between := func(from, to time.Duration) time.Duration { return from + time.Duration(r.Int64N(int64(to-from))) }
	soon := func() time.Duration { return between(0, 3*time.Second) }
	for _, s := range c.Servers {
		d = append(d,
			Fault{Kind: ServerKill, Target: s, For: soon()},
			Fault{Kind: ServerStop, Target: s, For: c.Lease + between(time.Second, 6*time.Second)},
			Fault{Kind: ServerRestart, Target: s, For: soon()})
	}
	for _, s := range c.Shards {
		d = append(d, Fault{Kind: ShardKill, Target: s, For: soon()})
	}
	d = append(d, Fault{Kind: SourceKill, Target: c.Source, For: soon()}, Fault{Kind: ControlKill, Target: c.Control, For: soon()}, Fault{Kind: NATSStop, Target: c.NATS, For: between(time.Second, 6*time.Second)})
	weathers := []Kind{NetLatency, NetCut, NetHalfOpen, NetStall, NetBandwidth}
	for _, l := range c.Links {
		for _, i := range r.Perm(len(weathers))[:2] { // all of them would leave little time for the processes
			k := weathers[i]
			f := Fault{Kind: k, Target: l, For: between(time.Second, 8*time.Second)}
			switch k {
			case NetLatency:
				f.Amount = 20 + r.IntN(400)
			case NetBandwidth:
				f.Amount = 20000 + r.IntN(400000)
			}
			d = append(d, f)
		}
	}
	r.Shuffle(len(d), func(i, j int) { d[i], d[j] = d[j], d[i] })
	return c.interleave(d)
}

// interleave puts a fault of a process behind each one of the network, so that each stretch of a plan has both.
func (c PlanConfig) interleave(d []Fault) []Fault {
	var net, proc, out []Fault
	for _, f := range d {
		if slices.Contains(c.Links, f.Target) {
			net = append(net, f)
		} else {
			proc = append(proc, f)
		}
	}
	for len(net)+len(proc) > 0 {
		if len(net) > 0 {
			out, net = append(out, net[0]), net[1:]
		}
		if len(proc) > 0 {
			out, proc = append(out, proc[0]), proc[1:]
		}
	}
	return out
}

// newRand is the generator of one stream of a seed.
func newRand(seed, stream uint64) *rand.Rand {
	return rand.New(rand.NewPCG(seed, stream)) //nolint:gosec // a seed that reproduces a run is no secret
}
