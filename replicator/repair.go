package replicator

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/rehomedb/rehome/replicator/catalog"
	"github.com/rehomedb/rehome/replicator/verify"
	"github.com/rehomedb/rehome/tenant"
)

const (
	// repairRows is how many rows one barrier repairs: a lane stands still for tens of milliseconds.
	repairRows = 1000
	// repairBytes bounds what is read from the source for one barrier, unless a single row is larger.
	repairBytes = 16 << 20
	// repairHold bounds how long a lane waits for a repair. A table without key is searched whole, which takes a while.
	repairHold = 60 * time.Second
	// repairKeys bounds how many differing rows are remembered in one round; further rounds find the others.
	repairKeys = 200_000
	// repairRounds bounds comparing and repairing; repairStalled is how many rounds in a row may find no fewer rows.
	repairRounds, repairStalled = 30, 3
)

// verifyAndRepair compares, copies the rows that differ again, and compares what was not equal once more, until all is
// equal or nothing helps. What differs in schema is not repaired.
//
// A row is repaired through the applier: the source's snapshot at a position has the row, each lane stops where it has
// applied just what that snapshot has, and in one transaction led by a progress row it removes the row's key and inserts the
// row if the shard owns it. So a repair is fenced by the epoch like any group, it is serial with the stream, and it takes
// the row away from shards that should not have it. To repair a row that is right changes nothing.
func (e *Engine) verifyAndRepair(ctx context.Context, opts VerifyOptions) (tenant.Verification, error) {
	report := newRepairReport()
	done := slices.Clone(opts.Done)
	until := time.Now().Add(opts.MaxDuration)
	started := time.Now().UTC()
	least, stalled := -1, 0
	for round := 1; ; round++ {
		found := newFoundRows()
		once := opts
		once.Done, once.onDiff, once.onPass = done, found.add, found.forget
		once.OnPart = func(p verify.Part) error {
			done = append(done, p)
			if opts.OnPart != nil {
				return opts.OnPart(p)
			}
			return nil
		}
		if opts.MaxDuration > 0 {
			once.MaxDuration = max(time.Until(until), time.Millisecond)
		}
		v, err := e.verifyOnce(ctx, once)
		v.StartedAt = started
		v.Repair = report.result(round)
		if err != nil || v.Clean {
			return v, err
		}
		if n := found.count(); least >= 0 && n >= least {
			stalled++
		} else {
			least, stalled = n, 0
		}
		switch {
		case found.count() == 0:
			report.say("nothing is left that a repair of rows could mend: see the schema")
		case round == repairRounds || stalled == repairStalled:
			report.say(fmt.Sprintf("the rows that differ do not become fewer; after %d rounds it was given up", round))
		default:
			if err := e.repairFound(ctx, found, report, &done); err != nil {
				return v, fmt.Errorf("repair: %w", err)
			}
			continue
		}
		v.Repair = report.result(round)
		return v, nil
	}
}

// foundRows gathers the rows that differ, each once.
type foundRows struct {
	mu     sync.Mutex
	tables map[string]*repairPiece
	order  []string
	seen   map[string]bool
}

func newFoundRows() *foundRows {
	return &foundRows{tables: map[string]*repairPiece{}, seen: map[string]bool{}}
}

// repairPiece are rows of one table, by key or, where it has none, by hash.
type repairPiece struct {
	table  *catalog.Table
	keys   [][]string
	hashes []int64
}

func (p *repairPiece) len() int { return len(p.keys) + len(p.hashes) }

func (f *foundRows) add(d verify.Diff) {
	f.mu.Lock()
	defer f.mu.Unlock()
	name := d.Table.Name.Quoted()
	id := fmt.Sprintf("%s %d %q", name, d.Hash, d.Key)
	if len(f.seen) >= repairKeys || f.seen[id] {
		return
	}
	f.seen[id] = true
	p := f.tables[name]
	if p == nil {
		p = &repairPiece{table: d.Table}
		f.tables[name], f.order = p, append(f.order, name)
	}
	if d.Key != nil {
		p.keys = append(p.keys, d.Key)
	} else {
		p.hashes = append(p.hashes, d.Hash)
	}
}

// forget drops all: the comparison begins anew, perhaps under another schema.
func (f *foundRows) forget() {
	f.mu.Lock()
	defer f.mu.Unlock()
	clear(f.tables)
	clear(f.seen)
	f.order = nil
}

func (f *foundRows) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.seen)
}

// batches divides the rows into what one barrier repairs. Only one table each: a conflict is then easily told.
func (f *foundRows) batches() []repairPiece {
	var out []repairPiece
	for _, name := range f.order {
		p := f.tables[name]
		for keys := range slices.Chunk(p.keys, repairRows) {
			out = append(out, repairPiece{table: p.table, keys: keys})
		}
		for hashes := range slices.Chunk(p.hashes, repairRows) {
			out = append(out, repairPiece{table: p.table, hashes: hashes})
		}
	}
	return out
}

// halves splits a piece, if it has more than one row.
func (p *repairPiece) halves() []repairPiece {
	if p.len() < 2 {
		return nil
	}
	k, h := len(p.keys)/2, len(p.hashes)/2
	return []repairPiece{{table: p.table, keys: p.keys[:k], hashes: p.hashes[:h]}, {table: p.table, keys: p.keys[k:], hashes: p.hashes[h:]}}
}

// repairFound repairs what was found, piece by piece. What a shard refuses is reported, and does not end the repair.
func (e *Engine) repairFound(ctx context.Context, found *foundRows, report *repairReport, done *[]verify.Part) error {
	todo := found.batches()
	for len(todo) > 0 {
		p := todo[0]
		todo = todo[1:]
		err := e.repairPiece(ctx, p, report)
		var wide *pieceTooWideError
		var conflict *repairConflictError
		switch {
		case err == nil:
		case errors.As(err, &wide):
			todo = append(p.halves(), todo...)
		case errors.As(err, &conflict) && len(conflict.keys) > 0 && len(p.keys)+len(conflict.keys) <= 10*repairRows:
			// Rows that are in the way hold values that the source gives to others by now: they are wrong too.
			p.keys = slices.Concat(p.keys, conflict.keys)
			todo = append([]repairPiece{p}, todo...)
			// Rows were touched that were not known to differ: what was found equal of this table counts no more.
			*done = slices.DeleteFunc(*done, func(d verify.Part) bool { return d.Table == p.table.Name.String() })
		case errors.Is(err, errReshaped):
			e.log.Info("rows are looked at again under the table's new schema", "table", p.table.Name.String())
		case errors.Is(err, errRefused), errors.As(err, &conflict):
			report.say(err.Error())
		default:
			return err
		}
	}
	return nil
}

// errRefused marks what a shard does not take, which trying again does not help.
var errRefused = errors.New("the shard refuses the rows")

// errReshaped says that a table is another one at the position of a repair, or since, than it was when its rows were
// compared. The next comparison finds the rows again.
var errReshaped = errors.New("the table was changed meanwhile")

// pieceTooWideError says that a piece holds more than a barrier should carry.
type pieceTooWideError struct{}

func (*pieceTooWideError) Error() string { return "too much for one barrier" }

// repairConflictError names rows that are in the way of others.
type repairConflictError struct {
	table string
	index string
	keys  [][]string // none: they are not known
}

func (e *repairConflictError) Error() string {
	return fmt.Sprintf("rows of %s cannot be written: others are in the way at %s", e.table, e.index)
}

// repairPiece repairs rows at one position.
func (e *Engine) repairPiece(ctx context.Context, p repairPiece, report *repairReport) error {
	for try := 1; ; try++ {
		err := e.repairAt(ctx, p, report, try >= verifyHoldFrom)
		if errors.Is(err, errPassed) && try < verifyTries {
			continue
		}
		return err
	}
}

func (e *Engine) repairAt(ctx context.Context, p repairPiece, report *repairReport, hold bool) error {
	s, err := e.currentStream()
	if err != nil {
		return err
	}
	var rows [][]repairRow // by lane
	at, err := e.reachTogether(ctx, s, hold, repairHold,
		func(ctx context.Context, _ *view, l *lane) error {
			i := slices.Index(s.lanes, l)
			removed, err := l.repair(ctx, &p, rows[i], e.Catalogue().Server.Encoding, 0)
			if err != nil {
				return err
			}
			report.count(p.table.Name.String(), l.shard.Name, removed, int64(len(rows[i])))
			return nil
		},
		func(ctx context.Context, at *view) (err error) {
			rows, err = e.readRepair(ctx, at, &p, len(s.lanes), report)
			return err
		})
	at.close()
	return err
}

// repairReport counts what was repaired.
type repairReport struct {
	mu     sync.Mutex
	tables map[[2]string]*tenant.RepairedTable
	left   []string
}

func newRepairReport() *repairReport {
	return &repairReport{tables: map[[2]string]*tenant.RepairedTable{}}
}

func (r *repairReport) count(table, shard string, removed, inserted int64) {
	if removed+inserted == 0 {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	t := r.tables[[2]string{table, shard}]
	if t == nil {
		t = &tenant.RepairedTable{Table: table, Shard: shard}
		r.tables[[2]string{table, shard}] = t
	}
	t.Removed += removed
	t.Inserted += inserted
}

// say notes once why something is not repaired.
func (r *repairReport) say(why string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !slices.Contains(r.left, why) && len(r.left) < 20 {
		r.left = append(r.left, why)
	}
}

func (r *repairReport) result(rounds int) *tenant.RowRepair {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := &tenant.RowRepair{Rounds: rounds, Left: strings.Join(r.left, "; ")}
	for _, t := range r.tables {
		out.Tables = append(out.Tables, *t)
	}
	slices.SortFunc(out.Tables, func(a, b tenant.RepairedTable) int {
		return strings.Compare(a.Table+"\x00"+a.Shard, b.Table+"\x00"+b.Shard)
	})
	return out
}
