package cutover

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/rehomedb/rehome/gate"
)

// Every input of Decide: both directions, the gate's epoch before, at, and up to three after the attempt's, every side, a
// decision in its own name, in another's and in nobody's, of this replication and of another.
func TestDecide(t *testing.T) {
	t.Parallel()
	const e = 5
	unknown, n := Verdict{}, 0
	for _, d := range []Direction{DirectionCutover, DirectionRollback, DirectionRehearsal} {
		for epoch := int64(e - 1); epoch <= e+4; epoch++ {
			for _, side := range []gate.Side{gate.SideSource, gate.SideTarget, gate.SideClosed, ""} {
				for _, by := range []string{"mine", "another's", ""} {
					for _, foreign := range []bool{false, true} {
						n++
						s := gate.State{Epoch: epoch, Side: side, Attempt: by}
						want := unknown
						switch {
						case epoch <= e, side == gate.SideClosed, side == "":
						case d == DirectionRehearsal:
							want = Verdict{Known: true, Outcome: "source", Follow: side == gate.SideSource || !foreign, Discard: side == gate.SideSource}
						case d == DirectionCutover && side == gate.SideTarget && by == "mine" && !foreign:
							want = Verdict{Known: true, Won: true, Outcome: "target", Follow: true, Certify: true}
						case d == DirectionCutover && side == gate.SideTarget: // a rival's decision, or a foreign one
							want = Verdict{Known: true, Outcome: "source", Follow: !foreign}
						case d == DirectionCutover:
							want = Verdict{Known: true, Outcome: "source", Follow: true, Discard: true}
						case side == gate.SideSource && by == "mine" && !foreign:
							want = Verdict{Known: true, Won: true, Outcome: "source", Follow: true, Discard: true}
						case side == gate.SideSource:
							want = Verdict{Known: true, Outcome: "target", Follow: true, Discard: true}
						default:
							want = Verdict{Known: true, Outcome: "target", Follow: !foreign}
						}
						if diff := cmp.Diff(want, Decide(d, e, "mine", s, foreign)); diff != "" {
							t.Errorf("%s from %d, gate %+v, foreign %v:\n%s", d, e, s, foreign, diff)
						}
						if got := Decide(d, e, "", s, foreign); got.Known {
							t.Errorf("an attempt without a name is decided by %+v", s)
						}
					}
				}
			}
		}
	}
	if want := 3 * 6 * 4 * 3 * 2; n != want {
		t.Errorf("%d inputs, want %d", n, want)
	}
}

// Every pair of steps of both directions, against the orders written out.
func TestMayFollow(t *testing.T) {
	t.Parallel()
	orders := map[Direction][]string{
		DirectionCutover:   {"intent", "way-back", "prelock", "hold", "fence", "marker", "drain", "sequences", "tail", "committing", "decided", "followed", "finished"},
		DirectionRehearsal: {"intent", "way-back", "prelock", "hold", "fence", "marker", "drain", "sequences", "tail", "committing", "finished"},
		DirectionRollback:  {"intent", "prelock", "hold", "lock", "fence", "marker", "drain", "take", "sequences", "committing", "decided", "finished"},
	}
	for d, order := range orders {
		next := map[string]string{}
		for i, s := range order[:len(order)-1] {
			next[s] = order[i+1]
		}
		all := append([]string{"", "committed", "fence-one", "follow-one", "nonsense"}, orders[DirectionCutover]...)
		all = append(all, "lock", "take")
		for _, from := range all {
			for _, to := range all {
				_, known := next[from]
				want := known && (to == next[from] || to == "finished")
				if from == "" {
					want = to == "intent"
				}
				if got := MayFollow(d, from, to); got != want {
					t.Errorf("%s: %q after %q: %v, want %v", d, to, from, got, want)
				}
			}
		}
	}
	if MayFollow("nowhere", "", "intent") || StepsOf("nowhere") != nil {
		t.Error("an unknown direction has steps")
	}
}

// What any server does that finds an attempt, for every step of both directions.
func TestFind(t *testing.T) {
	t.Parallel()
	stay, went, either := Finding{Resolve: true, CanStay: true}, Finding{Resolve: true, CanGo: true}, Finding{Resolve: true, CanStay: true, CanGo: true}
	want := map[string]Finding{
		"cutover/intent": stay, "cutover/way-back": stay, "cutover/prelock": stay, "cutover/hold": stay, "cutover/fence": stay, "cutover/marker": stay,
		"cutover/drain": stay, "cutover/sequences": stay, "cutover/tail": stay, "cutover/committing": either, "cutover/decided": went, "cutover/followed": went,
		"cutover/finished": {},
		"rollback/intent":  stay,
		"rollback/prelock": stay,
		"rollback/hold":    stay,
		"rollback/lock":    stay,
		"rollback/fence":   stay,
		"rollback/marker":  stay,
		"rollback/drain":   stay, "rollback/take": stay,
		"rollback/sequences": stay, "rollback/committing": either, "rollback/decided": went, "rollback/finished": {},
		// Not persisted, or of another version: asked, and anything is possible.
		"cutover/committed": either, "cutover/follow-one": either, "cutover/lock": either, "cutover/nonsense": either,
		"rollback/committed": either, "rollback/fence-one": either, "rollback/way-back": either, "rollback/tail": either, "rollback/followed": either,
	}
	for _, s := range StepsOf(DirectionRehearsal) {
		want["rehearsal/"+s] = stay
	}
	want["rehearsal/finished"] = Finding{}
	got := map[string]Finding{}
	for key := range want {
		d, step, _ := strings.Cut(key, "/")
		got[key] = Find(Direction(d), step)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	for _, d := range []Direction{DirectionCutover, DirectionRollback, DirectionRehearsal} {
		for _, s := range StepsOf(d) {
			if _, ok := want[string(d)+"/"+s]; !ok {
				t.Errorf("%s/%s is not in the table", d, s)
			}
		}
	}
	for _, f := range []Finding{stay, went, either, {}} {
		for _, won := range []bool{false, true} {
			if got, want := f.Allows(Verdict{Known: true, Won: won}), won && f.CanGo || !won && f.CanStay; got != want {
				t.Error(fmt.Sprint(f, won, got))
			}
		}
	}
}
