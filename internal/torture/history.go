package torture

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
)

// AtSource is the source's name as a side of a write; every other name is a shard's.
const AtSource = "source"

// Accepted is an acknowledged write. Its commit lies somewhere between the two times, which are of one monotonic clock.
type Accepted struct {
	ID    int64
	Realm string
	At    string        // AtSource, or a shard's name
	Sent  time.Duration // the COMMIT, or the statement that commits by itself
	Acked time.Duration
}

func (a Accepted) target() bool { return a.At != AtSource }

func (a Accepted) String() string {
	return fmt.Sprintf("write %d of realm %s at %s, sent %s, acknowledged %s", a.ID, a.Realm, a.At, a.Sent.Round(10*time.Microsecond), a.Acked.Round(10*time.Microsecond))
}

// Decision is a recorded change of the authority. When exactly it came nobody outside can see: it lies between the time
// it was asked for and the time its outcome was known.
type Decision struct {
	Name        string
	Target      bool // from then on the shards may write
	After, Till time.Duration
}

// Authority checks that one side at a time accepted writes, as the recorded decisions say: that there is an instant for
// each decision, in their order and each between its bounds, such that every acknowledged write may have been committed
// while its side had the authority. Nothing is assumed of how long a commit took, so that a complaint is a proof; and the
// instants are chosen as late as the writes of the new side permit, which no other choice can better:
//
//	source ──────w1───w2──w3──┤                  w3 may still be the source's: it was sent before t
//	shards                    t ├──w4────w5──    t: the first acknowledgement of a write that only the shards can have taken
//
// In particular a write is a complaint that one side accepted when it was sent after the other side had acknowledged one
// of the same period. target says who had the authority at the beginning.
func Authority(target bool, decisions []Decision, writes []Accepted) error {
	byEnd := slices.Clone(writes)
	slices.SortFunc(byEnd, func(a, b Accepted) int { return cmp.Compare(a.Acked, b.Acked) })
	var since time.Duration // the authority's last change
	since = -1
	next := 0 // of decisions
	for {
		// The first acknowledged write that the present period cannot have taken. What was sent before it began is the
		// former period's; see the doc comment.
		i := slices.IndexFunc(byEnd, func(w Accepted) bool { return w.target() != target && w.Sent > since })
		if next == len(decisions) {
			if i >= 0 {
				return fmt.Errorf("the %s had the authority since %s, and yet: %s", sideName(target), since.Round(10*time.Microsecond), byEnd[i])
			}
			return nil
		}
		d := decisions[next]
		next++
		at := d.Till
		if i >= 0 {
			at = min(at, byEnd[i].Acked)
		}
		if at < d.After || at < since {
			return fmt.Errorf("before %s, which was asked for at %s, the %s had the authority, and yet: %s", d.Name, d.After.Round(10*time.Microsecond), sideName(target), byEnd[i])
		}
		if d.Target == target {
			continue // it was decided for whom had it already
		}
		target, since = d.Target, at
	}
}

func sideName(target bool) string {
	if target {
		return "shards"
	}
	return "source"
}

// Kept is what a look at the side with the authority found: how often each write is there.
type Kept struct {
	Times map[int64]int
	Wrong []string // realms whose tally is not the number of their writes, and the like
}

// Settled checks that each acknowledged write is there once, that none is there which was refused, and none which nobody
// tried. tried tells the others: those with an unknown outcome, or under way.
func Settled(k Kept, writes []Accepted, refused func(id int64) bool, tried func(id int64) bool) error {
	var bad complaints
	for _, w := range writes {
		if n := k.Times[w.ID]; n != 1 {
			bad.add("%s: it is there %d times", w, n)
		}
	}
	for id, n := range k.Times {
		switch {
		case refused(id):
			bad.add("write %d was refused, and is there", id)
		case !tried(id):
			bad.add("write %d is there, and nobody tried it", id)
		case n != 1:
			bad.add("write %d is there %d times", id, n)
		}
	}
	for _, w := range k.Wrong {
		bad.add("%s", w)
	}
	if err := bad.err(); err != nil {
		return fmt.Errorf("%s", strings.Replace(err.Error(), "both sides differ", "what was acknowledged and what is there differ", 1))
	}
	return nil
}
