package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/rehomedb/rehome/internal/pgcluster"
	"github.com/rehomedb/rehome/internal/torture"
	"github.com/rehomedb/rehome/server/api"
	"github.com/rehomedb/rehome/tenant"
)

// killMaxPause bounds the attempts of the table.
const killMaxPause = 4 * time.Second

// Victims of the table.
const (
	killedServer    = "coordinator (kill -9)"
	silentServer    = "coordinator (silent)"
	crashedSource   = "source"
	crashedShard    = "shard"
	crashedControl  = "control database"
	killedAndSource = "coordinator + source"
	killedAndShard  = "coordinator + shard"

	lateCommit       = "coordinator; COMMIT arrives after RESOLVE"
	waitingCommit    = "coordinator; COMMIT arrives while others wait for it"
	lostCommit       = "COMMIT lost"
	unansweredCommit = "COMMIT unanswered"
	unansweredKilled = "coordinator; COMMIT unanswered"
)

var killVictims = []string{killedServer, silentServer, crashedSource, crashedShard, killedAndSource, killedAndShard, crashedControl}

// killRow is a row of the table.
type killRow struct {
	direction string // api.CommandCutover or CommandRollback
	step      string // after which, or whose COMMIT a relay is late with, or loses
	victim    string
	rivals    int // servers that resolve at once, beside the coordinator if that lives
	trick     *killTrick
}

// killTrick is a message of the coordinator that meets a relay's trick instead of a step.
type killTrick struct {
	relay, app string
	after      string // the step before, where others commit like this earlier
	do         torture.Trick
	want       string // the outcome; "": either
}

func (row killRow) String() string {
	return fmt.Sprintf("%s, %s, %s, %d rivals", row.direction, row.step, row.victim, row.rivals)
}

// killResult is what became of it.
type killResult struct {
	killRow
	outcome  string
	resolved time.Duration // from the death to the recorded outcome, with the sides accordingly
	open     string
}

// errNotReached says that the attempt ended before it came to the step.
var errNotReached = errors.New("the attempt did not come so far")

// play does a row: an attempt that meets its death at the step, and what comes of it.
func (r *killRig) play(row killRow) killResult {
	r.t.Helper()
	for try := 1; ; try++ {
		res, err := r.tryRow(row)
		if err == nil {
			return res
		}
		if !errors.Is(err, errNotReached) || try == 5 {
			r.t.Fatalf("%s: %v", row, err)
		}
		r.t.Logf("%s: %v; once more", row, err)
	}
}

func (r *killRig) tryRow(row killRow) (killResult, error) {
	r.t.Helper()
	res := killResult{killRow: row}
	r.whole()
	r.ready(row.direction)
	victim := r.holder()
	w := r.world
	var mishap *torture.Mishap
	if row.trick == nil {
		victim.tell(r.t, "at "+row.step)
		defer victim.disarm(r.t)
	} else {
		mishap = &torture.Mishap{App: row.trick.app, Text: "commit", Do: row.trick.do}
		defer mishap.Release() // whatever comes
		if row.trick.after == "" {
			r.relays[row.trick.relay].Set(mishap)
		} else {
			victim.tell(r.t, "at "+row.trick.after)
			defer victim.disarm(r.t)
		}
	}
	asked := w.witness.Now()
	id := r.ask(row.direction, api.CommandArgs{MaxPauseMS: killMaxPause.Milliseconds(), ApprovedBy: "ada@example.org"})
	if err := r.stands(id, victim, row, mishap); err != nil {
		if done, problem := r.answer(id); done && problem == "" { // it went through
			w.target = row.direction == api.CommandCutover
			w.witness.Decided(torture.Decision{Name: row.String() + " (undisturbed)", Target: w.target, After: asked, Till: w.witness.Now()})
		}
		return res, err
	}
	died := time.Now()
	g, err := r.strike(row, victim, mishap)
	if err != nil {
		return res, err
	}
	outcome, err := r.resolution(id, row.direction)
	if err != nil {
		return res, errors.Join(err, g.Wait())
	}
	res.outcome, res.resolved = outcome, time.Since(died)
	w.target = outcome == "target"
	w.witness.Decided(torture.Decision{Name: row.String(), Target: w.target, After: asked, Till: w.witness.Now()})
	if err := g.Wait(); err != nil {
		return res, err
	}
	if row.trick != nil && row.trick.want != "" && row.trick.want != outcome {
		return res, fmt.Errorf("the outcome is %s, and can only be %s", outcome, row.trick.want)
	}
	if mishap != nil {
		mishap.Release() // a late message arrives now, at the latest
	}
	if row.victim == silentServer { // it wakes up and goes on where it stood
		victim.signal(syscall.SIGCONT)
		victim.tell(r.t, "go")
	}
	r.goesOn(w.target)
	if err := w.witness.Check(r.t.Context(), false, w.target); err != nil {
		return res, err
	}
	if err := r.agree(outcome); err != nil {
		return res, err
	}
	open, err := w.witness.OpenSides(r.t.Context())
	if err != nil {
		return res, err
	}
	var sides []string
	for side, is := range open {
		if is {
			sides = append(sides, side)
		}
	}
	slices.Sort(sides)
	res.open = strings.Join(sides, ", ")
	return res, nil
}

// stands waits until the coordinator stands at the step, or its message was caught.
func (r *killRig) stands(id string, victim *killServer, row killRow, mishap *torture.Mishap) error {
	var hit <-chan struct{}
	if mishap != nil && row.trick.after == "" {
		hit = mishap.Hit()
	}
	for {
		select {
		case said, ok := <-victim.said:
			if !ok {
				return fmt.Errorf("server %s ended by itself", victim.name)
			}
			switch {
			case row.trick != nil && said == "reached "+row.trick.after:
				r.relays[row.trick.relay].Set(mishap)
				hit = mishap.Hit()
				victim.tell(r.t, "go")
			case said == "reached "+row.step:
				return nil
			}
			continue
		case <-hit:
			return nil
		case <-time.After(500 * time.Millisecond):
		}
		if done, problem := r.answer(id); done {
			return fmt.Errorf("%w: %s", errNotReached, problem)
		}
	}
}

// strike does what the row says, and lets the rivals in. The group ends when what was killed is back.
func (r *killRig) strike(row killRow, victim *killServer, mishap *torture.Mishap) (*errgroup.Group, error) {
	g := &errgroup.Group{}
	back := func(c *pgcluster.Cluster) error {
		if err := c.Kill(); err != nil {
			return err
		}
		g.Go(func() error { return c.Restart(context.WithoutCancel(r.t.Context())) })
		return nil
	}
	var err error
	lives := false
	switch row.victim {
	case killedServer, lateCommit, waitingCommit, unansweredKilled:
		victim.kill()
	case silentServer:
		victim.signal(syscall.SIGSTOP)
	case crashedSource:
		err, lives = back(r.source), true
	case crashedShard:
		err, lives = back(r.shards[0]), true
	case crashedControl:
		err, lives = back(r.control), true
	case killedAndSource:
		victim.kill()
		err = back(r.source)
	case killedAndShard:
		victim.kill()
		err = back(r.shards[0])
	case lostCommit, unansweredCommit: // the coordinator meets a broken connection
		lives = true
	}
	if err != nil {
		return nil, err
	}
	if lives && row.trick == nil {
		victim.tell(r.t, "go")
	}
	at := victim
	for n := range row.rivals {
		if n == 0 || at != victim { // the next one, while the one before resolves
			at = r.takeLease(at)
		}
	}
	if row.victim == waitingCommit {
		src := open(r.t, r.world.witness.DSN(row.trick.relay))
		defer func() { _ = src.Close(context.WithoutCancel(r.t.Context())) }()
		eventually(r.t, "somebody waits for the gate", func() bool {
			return scalar[bool](r.t, src, `SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'rehome gate%' AND wait_event_type = 'Lock')`)
		})
		mishap.Release()
	}
	return g, nil
}

// resolution waits until the attempt has an outcome in the control database and the phase is accordingly.
func (r *killRig) resolution(id, direction string) (outcome string, err error) {
	deadline := time.Now().Add(time.Minute)
	for {
		var got *string
		var phase tenant.Phase
		ctx, cancel := context.WithTimeout(r.t.Context(), 5*time.Second)
		err := r.pool.QueryRow(ctx, `SELECT c.outcome, r.phase FROM rehome_control.cutovers c JOIN rehome_control.replications r ON r.id = c.replication WHERE c.attempt = $1`, id).Scan(&got, &phase)
		cancel()
		if errors.Is(err, pgx.ErrNoRows) {
			return "", fmt.Errorf("the control database knows nothing of attempt %s", id)
		}
		if err == nil && got != nil && settledPhase(phase, direction, *got) {
			return *got, nil
		}
		if time.Now().After(deadline) {
			outcome := "none"
			if got != nil {
				outcome = *got
			}
			return "", errors.Join(fmt.Errorf("not resolved within a minute: outcome %s, phase %s", outcome, phase), err)
		}
		t := time.NewTimer(5 * time.Millisecond)
		<-t.C
	}
}

// settledPhase: the phase is the outcome's.
func settledPhase(p tenant.Phase, direction, outcome string) bool {
	switch {
	case outcome == "target":
		return p == tenant.CutOver
	case direction == api.CommandRollback:
		return p == tenant.RolledBack
	}
	return p == tenant.InSync || p == tenant.CatchingUp || p == tenant.RolledBack
}

// goesOn waits until the side with the authority has acknowledged some more writes.
func (r *killRig) goesOn(target bool) {
	r.t.Helper()
	count := func() int {
		source, shards := r.world.witness.Acknowledged()
		if target {
			return shards
		}
		return source
	}
	from := count()
	eventually(r.t, "writes go on", func() bool { return count() > from+15 })
}

// agree checks that the gates say what the control database has: the source's decides, and no shard is ahead of it.
func (r *killRig) agree(outcome string) error {
	type row struct {
		Epoch int64
		Side  string
	}
	read := func(at string) (g row, err error) {
		conn, err := pgx.Connect(r.t.Context(), r.world.witness.DSN(at).Reveal())
		if err != nil {
			return g, err
		}
		defer func() { _ = conn.Close(context.WithoutCancel(r.t.Context())) }()
		return g, conn.QueryRow(r.t.Context(), `SELECT epoch, side FROM rehome.gate`).Scan(&g.Epoch, &g.Side)
	}
	src, err := read(torture.AtSource)
	if err != nil {
		return err
	}
	if src.Side != outcome {
		return fmt.Errorf("the control database has outcome %s, and the source's gate says %s", outcome, src.Side)
	}
	for _, name := range []string{"s1", "s2"} {
		s, err := read(name)
		if err != nil {
			return err
		}
		if s.Epoch > src.Epoch || (s.Side == "target") != (outcome == "target") {
			return fmt.Errorf("the source's gate is (%d, %s), and that of %s (%d, %s)", src.Epoch, src.Side, name, s.Epoch, s.Side)
		}
	}
	return nil
}

// ready brings the world to where an attempt of a direction begins: the other side writes, it is verified, and close
// behind. Without a world there is a new one.
func (r *killRig) ready(direction string) {
	r.t.Helper()
	from := direction == api.CommandRollback
	if r.world == nil {
		r.newWorld()
	}
	if r.world.target != from {
		r.move()
	}
	r.verified()
}

// move lets the authority go to the other side, undisturbed.
func (r *killRig) move() {
	r.t.Helper()
	kind := api.CommandCutover
	if r.world.target {
		kind = api.CommandRollback
	}
	r.verified()
	var problem string
	for range 5 {
		asked := r.world.witness.Now()
		id := r.ask(kind, api.CommandArgs{MaxPauseMS: killMaxPause.Milliseconds(), ApprovedBy: "ada@example.org"})
		if problem = r.answered(id); problem != "" {
			continue
		}
		r.world.target = kind == api.CommandCutover
		r.world.witness.Decided(torture.Decision{Name: "an undisturbed " + kind, Target: r.world.target, After: asked, Till: r.world.witness.Now()})
		return
	}
	r.t.Fatalf("%s: %s", kind, problem)
}

// verified makes sure that there is a clean verification since the last change of the side.
func (r *killRig) verified() {
	r.t.Helper()
	phases := []tenant.Phase{tenant.InSync, tenant.RolledBack}
	if r.world.target {
		phases = []tenant.Phase{tenant.CutOver}
	}
	r.waitFor(phases...)
	var fresh bool
	r.db("the last verification", func(ctx context.Context) error {
		return r.pool.QueryRow(ctx, `SELECT EXISTS (SELECT FROM rehome_control.verifications v WHERE v.replication = $1 AND v.clean AND v.started_at > now() - interval '5 minutes'
			AND v.started_at > coalesce((SELECT max(finished_at) FROM rehome_control.cutovers c
				WHERE c.replication = $1 AND (c.direction, c.outcome) IN (('cutover', 'target'), ('rollback', 'source'))), '-infinity'))`, r.world.id).Scan(&fresh)
	})
	if fresh {
		return
	}
	var problem string
	for range 5 {
		id := r.ask(api.CommandVerify, api.CommandArgs{})
		if problem = r.answered(id); problem == "" {
			var result []byte
			r.db("the verification", func(ctx context.Context) error {
				return r.pool.QueryRow(ctx, `SELECT result FROM rehome_control.replication_commands WHERE id = $1`, id).Scan(&result)
			})
			var v tenant.Verification
			r.must(json.Unmarshal(result, &v))
			if !v.Clean {
				r.t.Fatalf("both sides differ: %s", result)
			}
			return
		}
	}
	r.t.Fatalf("verify: %s", problem)
}
