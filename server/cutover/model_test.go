package cutover

import (
	"fmt"
	"os"
	"testing"

	"github.com/rehomedb/rehome/gate"
)

// A model of the protocol: one gate at the source, two shards, several attempts in both directions of which two may be at
// work at once. Every interleaving of their steps is explored, with deaths everywhere, sessions that the server ends, a
// COMMIT that arrives after its coordinator died or whose answer is lost, resolvers that come at any time, rivals that
// go on although they were resolved, and followers that carry any state which the gate ever had to a shard at any time.
// What an attempt may do comes from order.go, what becomes of it from decide.go.
const (
	modelAttempts = 4 // at most; see TestModel
	modelAlive    = 2
	modelShards   = 2
	modelHistory  = 1 + 2*modelAttempts
)

// How a mutated protocol is wrong; none of these may pass unnoticed.
const (
	mutNone       = ""
	mutSelect     = "the outcome is read instead of resolved"
	mutEpoch      = "shards follow a state of any epoch"
	mutDrainEarly = "a rollback drains before the shards are fenced"
	mutOneShard   = "a rollback decides when one shard is fenced"
	mutUncertain  = "a rollback goes on although a fence's COMMIT was not answered"
	mutWait       = "RESOLVE does not wait for who holds the gate"
	mutFence      = "a rollback fences where the epoch is not lower, too"
)

type mGate struct {
	epoch  int8
	target bool
	by     int8 // attempt, from 1
}

type mShard struct {
	epoch int8
	open  bool
	dirty bool // it has acknowledged writes that the source has not
	tx    int8 // the attempt whose transaction holds its tables and its gate
	sent  bool // and has sent its COMMIT
}

type mAttempt struct {
	rollback bool
	e        int8
	alive    bool // a coordinator works on it
	pc       int8
	acked    int8 // shards whose fence's COMMIT was answered
	step     int8 // index into mSteps: what its record says
	resolved int8 // 1 + index into the history: what a resolver found
	done     int8 // 0 unfinished, 1 stayed, 2 went
}

type mState struct {
	history  [modelHistory]mGate
	n        int8 // of history; the last is the gate
	tx       int8 // the attempt whose transaction holds the gate and the source's tables
	sent     bool
	srcDirty bool // the source has acknowledged writes that the shards have not
	shards   [modelShards]mShard
	at       [modelAttempts]mAttempt
	started  int8
}

var mSteps = []string{StepIntent, StepCommitting, StepDecided}

func (s *mState) gate() mGate { return s.history[s.n-1] }

func (s *mState) push(g mGate) { s.history[s.n] = g; s.n++ }

func (a mAttempt) direction() Direction {
	if a.rollback {
		return DirectionRollback
	}
	return DirectionCutover
}

func (g mGate) state() gate.State {
	s := gate.State{Epoch: int64(g.epoch), Side: gate.SideSource, Attempt: fmt.Sprint(g.by)}
	if g.target {
		s.Side = gate.SideTarget
	}
	if g.by == 0 {
		s.Attempt = ""
	}
	return s
}

func (s *mState) verdict(k int, g mGate) Verdict {
	return Decide(s.at[k].direction(), int64(s.at[k].e), fmt.Sprint(k+1), g.state(), false)
}

type model struct {
	mutation string
	attempts int8
	seen     map[mState]mState // to its predecessor, for the trace
	names    map[mState]string
	todo     []mState
	failure  string
	bad      mState
	finals   int
}

func (m *model) fail(s mState, what string) {
	if m.failure == "" {
		m.failure, m.bad = what, s
	}
}

func (m *model) visit(from, to mState, name string) {
	if _, ok := m.seen[to]; ok {
		return
	}
	m.seen[to], m.names[to] = from, name
	open := 0
	for _, sh := range to.shards {
		if sh.open {
			open++
		}
	}
	g := to.gate()
	if !g.target && open > 0 {
		m.fail(to, "both sides are open")
	}
	m.settled(to, g, open)
	m.todo = append(m.todo, to)
}

// settled: where nothing is under way any more exactly one side is open, and it is what the records say.
func (m *model) settled(s mState, g mGate, open int) {
	for k := range s.at[:s.started] {
		if s.at[k].alive || s.at[k].done == 0 {
			return
		}
	}
	if s.tx != 0 {
		return
	}
	for _, sh := range s.shards {
		if sh.tx != 0 {
			return
		}
	}
	m.finals++
	if g.target && open != modelShards || !g.target && open != 0 {
		m.fail(s, fmt.Sprintf("everything is settled, the gate says target %v, and %d shards are open", g.target, open))
	}
	if g.by > 0 && s.at[g.by-1].done != 2 {
		m.fail(s, fmt.Sprintf("attempt %d decided, and its record says that it did not", g.by))
	}
	made := map[int8]bool{}
	for _, h := range s.history[:s.n] {
		made[h.by] = true
	}
	for k := range s.at[:s.started] {
		if s.at[k].done == 2 && !made[int8(k+1)] {
			m.fail(s, fmt.Sprintf("attempt %d is recorded as decided, and never was", k+1))
		}
	}
}

func (m *model) run() {
	var first mState
	first.history[0], first.n = mGate{epoch: 1}, 1
	m.seen, m.names = map[mState]mState{}, map[mState]string{}
	m.visit(first, first, "begin")
	for len(m.todo) > 0 && m.failure == "" {
		s := m.todo[len(m.todo)-1]
		m.todo = m.todo[:len(m.todo)-1]
		m.world(s)
		m.start(s)
		for k := range s.at[:s.started] {
			m.recover(s, k)
			if s.at[k].alive {
				next := s
				next.at[k].alive = false
				m.visit(s, next, fmt.Sprintf("the coordinator of %d dies", k+1))
				if s.at[k].rollback {
					m.rollback(s, k)
				} else {
					m.cutover(s, k)
				}
			}
		}
	}
}

// world is what happens by itself: writes, ends of transactions, followers.
func (m *model) world(s mState) {
	g := s.gate()
	if !g.target && s.tx == 0 && !s.srcDirty {
		next := s
		next.srcDirty = true
		m.visit(s, next, "a client writes to the source")
	}
	if s.tx != 0 {
		next := s
		next.tx, next.sent = 0, false
		m.visit(s, next, "the server ends the session that holds the gate")
		if s.sent {
			m.commit(s)
		}
	}
	for i, sh := range s.shards {
		if sh.tx == 0 && sh.open && !sh.dirty {
			next := s
			next.shards[i].dirty = true
			m.visit(s, next, fmt.Sprintf("a client writes to shard %d", i))
		}
		if sh.tx != 0 {
			next := s
			next.shards[i].tx, next.shards[i].sent = 0, false
			m.visit(s, next, fmt.Sprintf("the server of shard %d ends the session", i))
			if sh.sent {
				m.commitShard(s, i)
			}
			continue
		}
		for _, h := range s.history[:s.n] {
			if sh.epoch < h.epoch || m.mutation == mutEpoch {
				next := s
				next.shards[i].epoch, next.shards[i].open = h.epoch, h.target
				m.visit(s, next, fmt.Sprintf("shard %d follows (%d, target %v)", i, h.epoch, h.target))
			}
		}
	}
}

func (m *model) commit(s mState) {
	k := s.tx - 1
	a := s.at[k]
	if !a.rollback && s.srcDirty {
		m.fail(s, "the target opens without acknowledged writes of the source")
	}
	for _, sh := range s.shards {
		if a.rollback && sh.dirty {
			m.fail(s, "the source opens without acknowledged writes of a shard")
		}
	}
	next := s
	next.tx, next.sent = 0, false
	next.push(mGate{epoch: a.e + 1, target: !a.rollback, by: s.tx})
	m.visit(s, next, fmt.Sprintf("the COMMIT of %d arrives, unanswered", k+1))
	if a.alive {
		next.at[k].pc = pcAnswered
		m.visit(s, next, fmt.Sprintf("the COMMIT of %d is answered", k+1))
	}
}

func (m *model) commitShard(s mState, i int) {
	k := s.shards[i].tx - 1
	next := s
	next.shards[i] = mShard{epoch: s.at[k].e + 1, dirty: s.shards[i].dirty}
	m.visit(s, next, fmt.Sprintf("shard %d is fenced by %d, unanswered", i, k+1))
	if s.at[k].alive {
		next.at[k].acked |= 1 << i
		m.visit(s, next, fmt.Sprintf("shard %d is fenced by %d", i, k+1))
	}
}

// start: an attempt begins when none is unfinished, in the direction that the gate leaves.
func (m *model) start(s mState) {
	if s.started == m.attempts {
		return
	}
	alive := 0
	for k := range s.at[:s.started] {
		if s.at[k].done == 0 {
			return
		}
		if s.at[k].alive {
			alive++
		}
	}
	if alive == modelAlive {
		return
	}
	next := s
	g := s.gate()
	next.at[s.started] = mAttempt{rollback: g.target, e: g.epoch, alive: true}
	next.started++
	m.visit(s, next, fmt.Sprintf("attempt %d begins at epoch %d, rollback %v", next.started, g.epoch, g.target))
}

// recover is what any server may do with any unfinished attempt at any time.
func (m *model) recover(s mState, k int) {
	a := s.at[k]
	if a.done != 0 {
		return
	}
	if a.resolved == 0 && (s.tx == 0 || m.mutation == mutWait || m.mutation == mutSelect) {
		next := s
		g := s.gate()
		if g.epoch == a.e && m.mutation != mutSelect {
			g.epoch += 2
			next.push(g)
		}
		next.at[k].resolved = next.n
		v := s.verdict(k, g)
		if !v.Known && m.mutation != mutSelect {
			m.fail(s, "RESOLVE left a doubt")
		}
		if f := Find(a.direction(), mSteps[a.step]); !f.Resolve || !f.Allows(v) {
			m.fail(s, fmt.Sprintf("attempt %d was found at step %s with %+v", k+1, mSteps[a.step], v))
		}
		m.visit(s, next, fmt.Sprintf("attempt %d is resolved at (%d, target %v)", k+1, g.epoch, g.target))
	}
	if a.resolved > 0 {
		m.finish(s, k, s.history[a.resolved-1], "a resolver")
	}
}

// finish records the outcome once all shards have followed.
func (m *model) finish(s mState, k int, g mGate, who string) {
	for _, sh := range s.shards {
		if sh.epoch < g.epoch {
			return
		}
	}
	next := s
	next.at[k].done = 1
	if s.verdict(k, g).Won {
		next.at[k].done = 2
	}
	next.at[k].alive = next.at[k].alive && who != "it"
	m.visit(s, next, fmt.Sprintf("%s records attempt %d as %d", who, k+1, next.at[k].done))
}

// Program counters.
const (
	pcBegun int8 = iota
	pcLocked
	pcFenced
	pcDrained
	pcHeld
	pcCommitting
	pcSent
	pcAnswered
	pcDecided
)

func (m *model) cutover(s mState, k int) {
	a := s.at[k]
	next := s
	n := &next.at[k]
	switch a.pc {
	case pcBegun:
		if g := s.gate(); s.tx == 0 && g.epoch == a.e && !g.target {
			next.tx, n.pc = int8(k+1), pcFenced
			m.visit(s, next, fmt.Sprintf("%d fences the source", k+1))
		}
	case pcFenced:
		next.srcDirty, n.pc = false, pcHeld
		m.visit(s, next, fmt.Sprintf("%d has drained the source", k+1))
	default:
		m.decide(s, k)
	}
}

func (m *model) rollback(s mState, k int) {
	a := s.at[k]
	all := int8(1<<modelShards - 1)
	switch a.pc {
	case pcBegun:
		locked := 0
		for i, sh := range s.shards {
			if sh.tx == int8(k+1) {
				locked++
			} else if sh.tx == 0 {
				next := s
				next.shards[i].tx = int8(k + 1)
				m.visit(s, next, fmt.Sprintf("%d locks shard %d", k+1, i))
			}
		}
		if locked == modelShards || m.mutation == mutOneShard && locked > 0 {
			next := s
			next.at[k].pc = pcLocked
			if m.mutation == mutDrainEarly {
				m.drainShards(&next)
				for i := range next.shards { // the lock came later than the drain
					next.shards[i].dirty = next.shards[i].dirty || next.shards[i].open
				}
			}
			m.visit(s, next, fmt.Sprintf("%d has locked the shards", k+1))
		}
	case pcLocked:
		sent := a.acked
		for i, sh := range s.shards {
			if sh.tx == int8(k+1) && !sh.sent && (sh.epoch < a.e+1 || m.mutation == mutFence) {
				next := s
				next.shards[i].sent = true
				m.visit(s, next, fmt.Sprintf("%d sends the fence of shard %d", k+1, i))
			}
			if sh.sent {
				sent |= 1 << i
			}
		}
		if a.acked == all || m.mutation == mutOneShard && a.acked != 0 || m.mutation == mutUncertain && sent == all {
			next := s
			next.at[k].pc = pcFenced
			m.visit(s, next, fmt.Sprintf("%d has fenced the shards", k+1))
		}
	case pcFenced:
		next := s
		if m.mutation != mutDrainEarly {
			m.drainShards(&next)
		}
		next.at[k].pc = pcDrained
		m.visit(s, next, fmt.Sprintf("%d has drained the shards", k+1))
	case pcDrained:
		if g := s.gate(); s.tx == 0 && g.epoch == a.e && g.target {
			next := s
			next.tx, next.at[k].pc = int8(k+1), pcHeld
			m.visit(s, next, fmt.Sprintf("%d holds the gate", k+1))
		}
	default:
		m.decide(s, k)
	}
}

func (m *model) drainShards(s *mState) {
	for i := range s.shards {
		s.shards[i].dirty = false
	}
}

// decide is the end of both directions.
func (m *model) decide(s mState, k int) {
	a := s.at[k]
	next := s
	n := &next.at[k]
	switch a.pc {
	case pcHeld:
		n.pc, n.step = pcCommitting, 1
		m.visit(s, next, fmt.Sprintf("%d writes down that it commits", k+1))
	case pcCommitting:
		if s.tx == int8(k+1) {
			next.sent, n.pc = true, pcSent
			m.visit(s, next, fmt.Sprintf("%d sends COMMIT", k+1))
		}
	case pcAnswered:
		n.pc, n.step = pcDecided, 2
		m.visit(s, next, fmt.Sprintf("%d writes down that it decided", k+1))
		n.step = a.step
		m.visit(s, next, fmt.Sprintf("%d could not write down that it decided", k+1))
	case pcDecided:
		if a.done == 0 {
			m.finish(s, k, mGate{epoch: a.e + 1, target: !a.rollback, by: int8(k + 1)}, "it")
		}
	}
}

func (m *model) trace() string {
	out := ""
	for s := m.bad; ; s = m.seen[s] {
		out = m.names[s] + "\n" + out
		if m.seen[s] == s {
			return out
		}
	}
}

func TestModel(t *testing.T) {
	t.Parallel()
	m := &model{mutation: mutNone, attempts: 3}
	if os.Getenv("REHOME_LONG") != "" { // 8 million states, 2 minutes and 8 GB
		m.attempts = 4
	}
	m.run()
	if m.failure != "" {
		t.Fatalf("%s after\n%s%+v", m.failure, m.trace(), m.bad)
	}
	t.Logf("%d states, %d of them settled", len(m.seen), m.finals)
	if m.finals == 0 {
		t.Error("nothing ever settled")
	}
}

// The model must be able to fail.
func TestModelFindsMistakes(t *testing.T) {
	t.Parallel()
	for _, mutation := range []string{mutSelect, mutEpoch, mutDrainEarly, mutOneShard, mutUncertain, mutWait, mutFence} {
		t.Run(mutation, func(t *testing.T) {
			t.Parallel()
			m := &model{mutation: mutation, attempts: 3}
			m.run()
			if m.failure == "" {
				t.Errorf("%s: not noticed in %d states", mutation, len(m.seen))
			}
			t.Logf("%s after %d states:\n%s", m.failure, len(m.seen), m.trace())
		})
	}
}
