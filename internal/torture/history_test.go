package torture

import (
	"math/rand/v2"
	"strings"
	"testing"
	"time"
)

const ms = time.Millisecond

func write(id int64, at string, sent, acked int) Accepted {
	return Accepted{ID: id, Realm: "r", At: at, Sent: time.Duration(sent) * ms, Acked: time.Duration(acked) * ms}
}

func decision(target bool, after, till int) Decision {
	return Decision{Name: "a decision", Target: target, After: time.Duration(after) * ms, Till: time.Duration(till) * ms}
}

func TestAuthority(t *testing.T) {
	t.Parallel()
	over, back := decision(true, 10, 50), decision(false, 100, 150)
	for name, c := range map[string]struct {
		target    bool
		decisions []Decision
		writes    []Accepted
		want      string // "": it is in order
	}{
		"nothing":                             {},
		"one side":                            {writes: []Accepted{write(1, AtSource, 1, 2), write(2, AtSource, 3, 4)}},
		"a cutover":                           {decisions: []Decision{over}, writes: []Accepted{write(1, AtSource, 11, 20), write(2, "s1", 21, 30)}},
		"commits beside each other":           {decisions: []Decision{over}, writes: []Accepted{write(1, AtSource, 11, 30), write(2, "s1", 12, 25)}},
		"the source's answer came late":       {decisions: []Decision{over}, writes: []Accepted{write(1, AtSource, 11, 90), write(2, "s1", 12, 25), write(3, "s2", 30, 40)}},
		"there and back":                      {decisions: []Decision{over, back}, writes: []Accepted{write(1, AtSource, 1, 2), write(2, "s1", 40, 41), write(3, "s2", 99, 101), write(4, AtSource, 102, 103)}},
		"a decision that changes nothing":     {decisions: []Decision{decision(false, 5, 6), over}, writes: []Accepted{write(1, AtSource, 7, 8), write(2, "s1", 40, 41)}},
		"begun at the target":                 {target: true, decisions: []Decision{back}, writes: []Accepted{write(1, "s1", 1, 2), write(4, AtSource, 102, 103)}},
		"both open":                           {decisions: []Decision{over}, writes: []Accepted{write(1, "s1", 20, 21), write(2, AtSource, 22, 23)}, want: "the shards had the authority since 21ms, and yet: write 2"},
		"both open, for a moment":             {decisions: []Decision{over}, writes: []Accepted{write(1, "s1", 20, 21), write(2, AtSource, 22, 23), write(3, "s1", 24, 25)}, want: "write 2"},
		"open before the decision":            {decisions: []Decision{over}, writes: []Accepted{write(1, "s1", 5, 9)}, want: "before a decision"},
		"no decision":                         {writes: []Accepted{write(1, AtSource, 1, 2), write(2, "s1", 3, 4)}, want: "the source had the authority since"},
		"decided for the source":              {decisions: []Decision{decision(false, 10, 50)}, writes: []Accepted{write(1, "s2", 20, 21)}, want: "the source had the authority"},
		"the source goes on after the end":    {decisions: []Decision{over}, writes: []Accepted{write(1, AtSource, 51, 52)}, want: "the shards had the authority since 50ms"},
		"shards open after the way back":      {decisions: []Decision{over, back}, writes: []Accepted{write(1, "s1", 40, 41), write(2, AtSource, 110, 111), write(3, "s1", 112, 113)}, want: "write 3"},
		"the source open before the rollback": {decisions: []Decision{over, back}, writes: []Accepted{write(1, "s1", 40, 41), write(2, AtSource, 60, 61), write(3, "s1", 70, 71), write(4, AtSource, 120, 121)}, want: "before a decision, which was asked for at 100ms"},
		"it went there twice":                 {decisions: []Decision{over, back}, writes: []Accepted{write(1, "s1", 40, 41), write(2, AtSource, 110, 111), write(3, "s1", 160, 161), write(4, AtSource, 170, 171)}, want: "write 3"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			err := Authority(c.target, c.decisions, c.writes)
			if (c.want == "") != (err == nil) || (err != nil && !strings.Contains(err.Error(), c.want)) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

// Histories that are made by a gate with one authority at a time are never complained of, and always when one write is
// moved into a period of the other side.
func TestAuthorityOfRandomHistories(t *testing.T) {
	t.Parallel()
	for seed := range uint64(2000) {
		r := rand.New(rand.NewPCG(seed, 1))
		var decisions []Decision
		var writes []Accepted
		now, target, id := 0, false, int64(0)
		for range 1 + r.IntN(4) {
			length := 50 + r.IntN(100)
			for range 1 + r.IntN(20) {
				at := now + r.IntN(length)
				id++
				w := write(id, AtSource, at-r.IntN(60), at+1+r.IntN(60))
				if target {
					w.At = "s" + string(rune('1'+r.IntN(2)))
				}
				writes = append(writes, w)
			}
			now += length
			target = !target
			decisions = append(decisions, decision(target, now-r.IntN(20), now+r.IntN(20)))
		}
		if err := Authority(false, decisions, writes); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		wrong := write(id+1, "s1", now+30, now+31)
		if target {
			wrong.At = AtSource
		}
		if Authority(false, decisions, append(writes, wrong)) == nil {
			t.Fatalf("seed %d: a write on the side that was closed is not seen", seed)
		}
	}
}

func TestSettled(t *testing.T) {
	t.Parallel()
	acked := []Accepted{write(1, AtSource, 1, 2), write(2, "s1", 3, 4)}
	refused := func(id int64) bool { return id == 7 }
	tried := func(id int64) bool { return id < 9 }
	for name, c := range map[string]struct {
		k    Kept
		want string
	}{
		"in order":    {k: Kept{Times: map[int64]int{1: 1, 2: 1}}},
		"an unknown":  {k: Kept{Times: map[int64]int{1: 1, 2: 1, 3: 1}}},
		"lost":        {k: Kept{Times: map[int64]int{2: 1}}, want: "write 1 of realm r at source, sent 1ms, acknowledged 2ms: it is there 0 times"},
		"doubled":     {k: Kept{Times: map[int64]int{1: 1, 2: 2}}, want: "it is there 2 times"},
		"refused":     {k: Kept{Times: map[int64]int{1: 1, 2: 1, 7: 1}}, want: "write 7 was refused, and is there"},
		"of nobody":   {k: Kept{Times: map[int64]int{1: 1, 2: 1, 9: 1}}, want: "nobody tried it"},
		"wrong tally": {k: Kept{Times: map[int64]int{1: 1, 2: 1}, Wrong: []string{"the tally of r"}}, want: "the tally of r"},
	} {
		err := Settled(c.k, acked, refused, tried)
		if (c.want == "") != (err == nil) || (err != nil && !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: got %v, want %q", name, err, c.want)
		}
	}
}
