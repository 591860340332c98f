package cutover

import "github.com/rehomedb/rehome/gate"

// Direction is which way an attempt moves the write authority.
type Direction string

// Directions, as rehome_control.cutovers keeps them.
const (
	DirectionCutover  Direction = "cutover"  // source → target
	DirectionRollback Direction = "rollback" // target → source
	// DirectionRehearsal goes nowhere: a cutover without its decision.
	DirectionRehearsal Direction = "rehearsal"
)

// Goes is the side that an attempt of this direction gives the authority to; none for a rehearsal.
func (d Direction) Goes() gate.Side {
	switch d {
	case DirectionCutover:
		return gate.SideTarget
	case DirectionRollback:
		return gate.SideSource
	}
	return ""
}

// Verdict is what follows for one attempt from a decided state of the gate.
type Verdict struct {
	// Known is false where the state decides nothing about the attempt: nobody resolved it yet, or the gate went back (a
	// source restored from a backup, or failed over to a standby that was behind). Nothing may be done then.
	Known bool
	// Won: the attempt's own decision stands.
	Won bool
	// Outcome is the side at which the attempt ended: where it went if it won, where it came from if not.
	Outcome string
	// Follow: the replication's shards follow the state, which opens or closes them. Otherwise they stay as they are: the
	// authority went to somebody else's shards.
	Follow bool
	// Certify: a certificate is signed.
	Certify bool
	// Discard: the way back is dropped, because the source writes.
	Discard bool
}

// Decide says what became of an attempt that began at the gate's epoch e. The state comes from gate.Resolve or is what an
// answered COMMIT made; foreign says that the gate's side is the target of another replication. It is the only place that
// tells won from lost; whoever runs an attempt, takes one back or finds one asks it.
//
// An attempt wins by making (e+1, its side) in its own name. Whatever comes later keeps that name as long as it keeps the
// side: a RESOLVE changes the epoch only.
func Decide(d Direction, e int64, attempt string, s gate.State, foreign bool) Verdict {
	if s.Epoch <= e || (s.Side != gate.SideSource && s.Side != gate.SideTarget) || attempt == "" {
		return Verdict{}
	}
	v := Verdict{
		Known:   true,
		Won:     s.Side == d.Goes() && s.Attempt == attempt && !foreign,
		Follow:  s.Side == gate.SideSource || !foreign,
		Discard: s.Side == gate.SideSource,
	}
	v.Certify = v.Won && d == DirectionCutover
	v.Outcome = OutcomeSource
	if d == DirectionCutover && v.Won || d == DirectionRollback && !v.Won {
		v.Outcome = OutcomeTarget
	}
	return v
}
