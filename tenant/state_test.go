package tenant

import (
	"errors"
	"testing"
)

// Every observation in every phase, and in every pause: what is not listed changes nothing; requests that do not fit are
// refused.
func TestNext(t *testing.T) {
	t.Parallel()
	type move struct {
		to     Phase
		action Action
	}
	const same = Phase("same")
	paused := map[Phase]bool{Created: true, Preparing: true, Copying: true, CatchingUp: true, InSync: true, CutOver: true, RolledBack: true}
	resume := map[Phase]Action{
		Created: DoPrepare, Preparing: DoPrepare, Copying: DoCopy, CatchingUp: DoStream, InSync: DoStream, RolledBack: DoStream,
		CuttingOver: DoResolve, RollingBack: DoResolve, CutOver: DoFollow, Completed: DoCleanUp, Cancelled: DoCleanUp, Paused: DoNothing,
	}
	moves := map[ObservationKind]map[Phase]move{
		SawOwned:         {Created: {Preparing, DoPrepare}},
		SawPrepared:      {Preparing: {Copying, DoCopy}},
		SawCopied:        {Copying: {CatchingUp, DoStream}},
		SawCaughtUp:      {CatchingUp: {InSync, DoNothing}},
		SawFellBehind:    {InSync: {CatchingUp, DoNothing}},
		SawProblem:       {},
		SawDecidedTarget: {CuttingOver: {CutOver, DoFollow}, RollingBack: {CutOver, DoFollow}, InSync: {CutOver, DoFollow}, CatchingUp: {CutOver, DoFollow}},
		SawDecidedSource: {CuttingOver: {InSync, DoNothing}, RollingBack: {RolledBack, DoStream}},
		AskedPause:       {Paused: {same, DoNothing}},
		AskedResume:      {},
		AskedCancel: {
			Created: {Cancelled, DoCleanUp}, Preparing: {Cancelled, DoCleanUp}, Copying: {Cancelled, DoCleanUp}, CatchingUp: {Cancelled, DoCleanUp},
			InSync: {Cancelled, DoCleanUp}, RolledBack: {Cancelled, DoCleanUp}, Cancelled: {same, DoCleanUp},
		},
		AskedCutover:  {InSync: {CuttingOver, DoCutover}, RolledBack: {CuttingOver, DoCutover}, CuttingOver: {same, DoCutover}},
		AskedRollback: {CutOver: {RollingBack, DoRollback}, RollingBack: {same, DoRollback}},
		AskedComplete: {CutOver: {Completed, DoCleanUp}, Completed: {same, DoCleanUp}},
	}
	asked := map[ObservationKind]bool{AskedPause: true, AskedResume: true, AskedCancel: true, AskedCutover: true, AskedRollback: true, AskedComplete: true}
	for p, action := range resume {
		if p != Created {
			moves[SawOwned][p] = move{same, action}
		}
	}
	for p := range paused {
		moves[SawProblem][p], moves[AskedPause][p] = move{Paused, DoStop}, move{Paused, DoStop}
	}
	for _, p := range Phases {
		if !p.Terminal() {
			moves[AskedResume][p] = move{same, DoNothing}
		}
	}
	n := 0
	check := func(s State, o ObservationKind, want move, listed bool) {
		t.Helper()
		n++
		got, action, err := Next(s, Observation{Kind: o, Reason: "why", Remedy: "what"})
		if !listed {
			if got != s || action != DoNothing || (err != nil) != asked[o] || err != nil && (!errors.Is(err, ErrTransition) || AsError(err).Hint == "") {
				t.Errorf("%s in %+v: %+v, %s, %v; nothing is to happen", o, s, got, action, err)
			}
			return
		}
		next := State{Phase: want.to}
		switch want.to {
		case same:
			next = s
		case Paused:
			next = State{Phase: Paused, Resume: s.Phase, Reason: "why", Remedy: "what"}
		}
		if got != next || action != want.action || err != nil {
			t.Errorf("%s in %+v: %+v, %s, %v; want %+v, %s", o, s, got, action, err, next, want.action)
		}
	}
	for _, o := range Observations {
		if moves[o] == nil {
			t.Fatalf("%s is not in the table", o)
		}
		for _, p := range Phases {
			want, listed := moves[o][p]
			if p == Paused {
				continue
			}
			check(State{Phase: p}, o, want, listed)
		}
		for p := range paused {
			s := State{Phase: Paused, Resume: p, Reason: "r", Remedy: "m"}
			want, listed := moves[o][Paused]
			switch {
			case o == AskedResume:
				want, listed = move{p, resume[p]}, true
			case o == AskedCancel && p != CutOver:
				want, listed = move{Cancelled, DoCleanUp}, true
			case o == AskedComplete && p == CutOver:
				want, listed = move{Completed, DoCleanUp}, true
			case o == SawDecidedTarget && (p == InSync || p == CatchingUp):
				n++
				if got, action, err := Next(s, Observation{Kind: o}); got != (State{Phase: Paused, Resume: CutOver, Reason: "r", Remedy: "m"}) || action != DoFollow || err != nil {
					t.Errorf("%s in %+v: %+v, %s, %v", o, s, got, action, err)
				}
				continue
			}
			check(s, o, want, listed)
		}
	}
	if want := len(Observations) * (len(Phases) - 1 + len(paused)); n != want {
		t.Errorf("%d cases, want %d", n, want)
	}
	if got, action, err := Next(State{Phase: InSync}, Observation{Kind: "nonsense"}); got.Phase != InSync || action != DoNothing || err != nil {
		t.Error(got, action, err)
	}
}
