package cutover

import "slices"

// stage is one step of an attempt, as it is persisted.
type stage struct {
	name string
	// bare: it is not persisted, only passed: a Crash hook gets it.
	bare bool
	// canStay, canGo: what the gate can say of an attempt whose record ends here: that the authority stayed, or that it
	// went. A record may lag behind what was done (within the pause it is not flushed), but never runs ahead of it, and
	// committing is flushed before COMMIT is sent.
	canStay, canGo bool
}

func stages(d Direction) []stage {
	before := func(name string) stage { return stage{name: name, canStay: true} }
	after := func(name string) stage { return stage{name: name, canGo: true} }
	committing := stage{name: StepCommitting, canStay: true, canGo: true}
	committed := stage{name: StepCommitted, canGo: true, bare: true}
	switch d {
	case DirectionCutover:
		return []stage{
			before(StepIntent), before(StepWayBack), before(StepPrelock), before(StepHold), before(StepFence), before(StepMarker), before(StepDrain),
			before(StepSequences), before(StepTail), committing, committed, after(StepDecided),
			{name: StepFollowOne, canGo: true, bare: true},
			after(StepFollowed),
			{name: StepFinished, canStay: true, canGo: true},
		}
	case DirectionRehearsal: // its COMMIT is never sent
		return []stage{
			before(StepIntent), before(StepWayBack), before(StepPrelock), before(StepHold), before(StepFence), before(StepMarker), before(StepDrain),
			before(StepSequences), before(StepTail), before(StepCommitting), before(StepFinished),
		}
	case DirectionRollback:
		return []stage{
			before(StepIntent), before(StepPrelock), before(StepHold), before(StepLock),
			{name: StepFenceOne, canStay: true, bare: true},
			before(StepFence),
			before(StepMarker), before(StepDrain), before(StepTake), before(StepSequences), committing, committed, after(StepDecided),
			{name: StepFinished, canStay: true, canGo: true},
		}
	}
	return nil
}

// StepsOf lists all steps of a direction in order, those that are not persisted included.
func StepsOf(d Direction) []string {
	var out []string
	for _, s := range stages(d) {
		out = append(out, s.name)
	}
	return out
}

// MayFollow reports whether a record may move from one persisted step to the other. Each step follows the one before it;
// besides, an attempt may end from everywhere (it was taken back, or another server found it), and a decision whose answer
// was lost is found where the record says committing. An empty step is before the first.
func MayFollow(d Direction, from, to string) bool {
	var order []string
	for _, s := range stages(d) {
		if !s.bare {
			order = append(order, s.name)
		}
	}
	j := slices.Index(order, to)
	if j < 0 {
		return false
	}
	if from == "" {
		return j == 0
	}
	i := slices.Index(order, from)
	if i < 0 || from == StepFinished {
		return false
	}
	return to == StepFinished || j == i+1
}

// Finding is what any server does that finds an attempt without an outcome, by the step at which its record ends.
type Finding struct {
	// Resolve: the gate at the source is asked, by RESOLVE and never by reading alone, and Decide judges what it says.
	Resolve bool
	// CanStay and CanGo: which answers are possible. Any other means that the source, or the control database, lost what
	// it had acknowledged: nothing is done then, and a person is called.
	CanStay, CanGo bool
}

// Find looks a step up. A step that is not known (of another version) is resolved like any, and anything is possible.
func Find(d Direction, step string) Finding {
	if step == StepFinished {
		return Finding{}
	}
	for _, s := range stages(d) {
		if s.name == step && !s.bare {
			return Finding{Resolve: true, CanStay: s.canStay, CanGo: s.canGo}
		}
	}
	return Finding{Resolve: true, CanStay: true, CanGo: true}
}

// Allows reports whether the verdict is possible for an attempt that was found there.
func (f Finding) Allows(v Verdict) bool {
	if v.Won {
		return f.CanGo
	}
	return f.CanStay
}
