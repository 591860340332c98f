package tenant

import "fmt"

// Phase is where a replication stands.
type Phase string

// The phases, in the order of the journey.
const (
	Created     Phase = "created"
	Preparing   Phase = "preparing"
	Copying     Phase = "copying"
	CatchingUp  Phase = "catching_up"
	InSync      Phase = "in_sync"
	CuttingOver Phase = "cutting_over"
	CutOver     Phase = "cut_over"
	RollingBack Phase = "rolling_back"
	RolledBack  Phase = "rolled_back"
	Completed   Phase = "completed"
	Paused      Phase = "paused"
	Cancelled   Phase = "cancelled"
)

// Phases lists every phase.
var Phases = []Phase{Created, Preparing, Copying, CatchingUp, InSync, CuttingOver, CutOver, RollingBack, RolledBack, Completed, Paused, Cancelled}

// Terminal reports whether nothing follows any more.
func (p Phase) Terminal() bool { return p == Completed || p == Cancelled }

// State is a replication's phase and, while it is paused, what it goes back to and why it stopped.
type State struct {
	Phase  Phase  `json:"phase"`
	Resume Phase  `json:"resume,omitempty"` // while paused: the phase to go back to
	Reason string `json:"reason,omitempty"` // while paused: why
	Remedy string `json:"remedy,omitempty"` // while paused: what to do
}

// ObservationKind is what was seen or asked.
type ObservationKind string

// Observations. The first group is seen by the worker, the second asked by a person.
const (
	SawOwned         ObservationKind = "owned"          // a worker took the replication
	SawPrepared      ObservationKind = "prepared"       // preflight passed, slot and schema exist
	SawCopied        ObservationKind = "copied"         // every table is copied, indexes are built
	SawCaughtUp      ObservationKind = "caught_up"      // lag is below the threshold
	SawFellBehind    ObservationKind = "fell_behind"    // lag is far above the threshold again
	SawProblem       ObservationKind = "problem"        // needs a person: pause with a reason
	SawDecidedTarget ObservationKind = "decided_target" // the gate says: the target writes
	SawDecidedSource ObservationKind = "decided_source" // the gate says: the source writes
	AskedPause       ObservationKind = "ask_pause"
	AskedResume      ObservationKind = "ask_resume"
	AskedCancel      ObservationKind = "ask_cancel"
	AskedCutover     ObservationKind = "ask_cutover"
	AskedRollback    ObservationKind = "ask_rollback"
	AskedComplete    ObservationKind = "ask_complete"
)

// Observations lists every kind of observation.
var Observations = []ObservationKind{
	SawOwned, SawPrepared, SawCopied, SawCaughtUp, SawFellBehind, SawProblem, SawDecidedTarget, SawDecidedSource,
	AskedPause, AskedResume, AskedCancel, AskedCutover, AskedRollback, AskedComplete,
}

// Observation is one thing seen or asked, with the texts that a pause shows.
type Observation struct {
	Kind   ObservationKind
	Reason string
	Remedy string
}

// Action is what the worker does after a transition.
type Action string

// Actions.
const (
	DoNothing  Action = "nothing"
	DoPrepare  Action = "prepare"  // preflight, identities, slot, schema
	DoCopy     Action = "copy"     // copy the tables that are not finished, then indexes
	DoStream   Action = "stream"   // apply the stream
	DoCutover  Action = "cutover"  // the cutover protocol, while the stream goes on
	DoResolve  Action = "resolve"  // an outcome may be unknown: resolve it at the gate
	DoFollow   Action = "follow"   // the target writes: make everything agree with the gate
	DoRollback Action = "rollback" // the rollback protocol
	DoCleanUp  Action = "clean_up" // drop what was created at the source
	DoStop     Action = "stop"     // stop the worker, keep slot and positions
)

// ErrTransition says that what was asked does not fit the phase.
var ErrTransition = &Error{Kind: KindConflict, Code: "wrong-phase", Message: "the replication is in another phase"}

func running(p Phase) bool {
	switch p {
	case Created, Preparing, Copying, CatchingUp, InSync:
		return true
	}
	return false
}

// Next decides what follows. It is total: any observation in any phase gives a state, an action and, for requests that
// do not fit, an error that wraps ErrTransition; the state is then unchanged.
func Next(s State, o Observation) (State, Action, error) {
	to := func(p Phase, a Action) (State, Action, error) { return State{Phase: p}, a, nil }
	stay := func(a Action) (State, Action, error) { return s, a, nil }
	refuse := func(hint string) (State, Action, error) {
		return s, DoNothing, &Error{
			Kind: KindConflict, Code: ErrTransition.Code,
			Message: fmt.Sprintf("%s does not fit: the replication is %s", o.Kind, s.Phase), Hint: hint,
		}
	}
	pause := func() (State, Action, error) {
		return State{Phase: Paused, Resume: s.Phase, Reason: o.Reason, Remedy: o.Remedy}, DoStop, nil
	}
	switch o.Kind {
	case SawOwned:
		if s.Phase == Created {
			return to(Preparing, DoPrepare)
		}
		return stay(resumeAction(s.Phase))
	case SawPrepared:
		if s.Phase == Preparing {
			return to(Copying, DoCopy)
		}
	case SawCopied:
		if s.Phase == Copying {
			return to(CatchingUp, DoStream)
		}
	case SawCaughtUp:
		if s.Phase == CatchingUp {
			return to(InSync, DoNothing)
		}
	case SawFellBehind:
		if s.Phase == InSync {
			return to(CatchingUp, DoNothing)
		}
	case SawProblem:
		// During a cutover or rollback a problem is answered by the protocol itself, which ends in a decision.
		if running(s.Phase) || s.Phase == CutOver || s.Phase == RolledBack {
			return pause()
		}
	case SawDecidedTarget:
		switch s.Phase {
		case CuttingOver, RollingBack, InSync, CatchingUp:
			return to(CutOver, DoFollow)
		case Paused:
			if s.Resume == InSync || s.Resume == CatchingUp {
				return State{Phase: Paused, Resume: CutOver, Reason: s.Reason, Remedy: s.Remedy}, DoFollow, nil
			}
		}
	case SawDecidedSource:
		switch s.Phase {
		case CuttingOver:
			return to(InSync, DoNothing)
		case RollingBack:
			return to(RolledBack, DoStream)
		}
	case AskedPause:
		if running(s.Phase) || s.Phase == CutOver || s.Phase == RolledBack {
			return pause()
		}
		if s.Phase == Paused {
			return stay(DoNothing)
		}
		return refuse("a replication can be paused before a cutover begins or after it ended")
	case AskedResume:
		if s.Phase == Paused {
			return to(s.Resume, resumeAction(s.Resume))
		}
		if !s.Phase.Terminal() {
			return stay(DoNothing)
		}
		return refuse("start a new replication instead")
	case AskedCancel:
		if running(s.Phase) || s.Phase == RolledBack || (s.Phase == Paused && (running(s.Resume) || s.Resume == RolledBack)) {
			return to(Cancelled, DoCleanUp)
		}
		if s.Phase == Cancelled {
			return stay(DoCleanUp)
		}
		return refuse("after a cutover use rollback or complete")
	case AskedCutover:
		if s.Phase == InSync || s.Phase == RolledBack {
			return to(CuttingOver, DoCutover)
		}
		if s.Phase == CuttingOver {
			return stay(DoCutover)
		}
		return refuse("a cutover needs a replication that is in_sync or rolled_back; see replication-progress")
	case AskedRollback:
		if s.Phase == CutOver {
			return to(RollingBack, DoRollback)
		}
		if s.Phase == RollingBack {
			return stay(DoRollback)
		}
		return refuse("there is nothing to roll back before a cutover or after completion")
	case AskedComplete:
		if s.Phase == CutOver || (s.Phase == Paused && s.Resume == CutOver) {
			return to(Completed, DoCleanUp)
		}
		if s.Phase == RolledBack || (s.Phase == Paused && s.Resume == RolledBack) {
			return refuse("the source writes: cancel-replication ends the move and drops the copy; cutover tries it again")
		}
		if s.Phase == Completed {
			return stay(DoCleanUp)
		}
		return refuse("only a replication that is cut over can be completed")
	}
	return stay(DoNothing)
}

// resumeAction is what a worker does that finds a replication in a phase: after a crash, a take-over or a pause.
func resumeAction(p Phase) Action {
	switch p {
	case Created, Preparing:
		return DoPrepare
	case Copying:
		return DoCopy
	case CatchingUp, InSync, RolledBack:
		return DoStream
	case CuttingOver, RollingBack:
		return DoResolve
	case CutOver:
		return DoFollow
	case Completed, Cancelled:
		return DoCleanUp
	}
	return DoNothing
}
