package snapshot

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"golang.org/x/sync/errgroup"

	"github.com/rehomedb/rehome/replicator/catalog"
	"github.com/rehomedb/rehome/tenant"
)

// failGrace is how long the other sessions may take to fail their COPY in an orderly way after one failed. Then their
// connections are cut: one of them may be the one that hangs.
const failGrace = 5 * time.Second

// Spec says what CopyLeaf copies. Sessions are the caller's, who opened transactions on them, and who closes or rolls
// back all of them after an error.
type Spec struct {
	Table    tenant.TableName // of the root, for messages
	Leaf     catalog.Leaf
	Part     *Part            // not nil: only some rows, see there
	Columns  []catalog.Column // Table.Copied()
	RealmKey string           // empty: every row goes to every target

	// Source is in a REPEATABLE READ READ ONLY transaction that imported the snapshot.
	Source *pgconn.PgConn
	// Targets are each in a transaction, in which the leaf was truncated if Freeze.
	Targets []*pgconn.PgConn
	// Route gives the index in Targets of a realm's UTF-8 text. Not needed for one target.
	Route func(realm []byte) int

	Prepared bool      // Prepare was called in these transactions, and found the leaf as it was described
	Freeze   bool      // COPY … FREEZE
	Text     bool      // text format even where binary is possible
	Counters *Counters // live figures; may be nil
	// Pace is told of the bytes as they are read and may wait: the source then stops sending. May be nil.
	Pace func(ctx context.Context, bytes int) error
}

// Part is a chunk of a table: the rows of the leaves that satisfy a condition. They are read by a query and written to
// Spec.Leaf by its name, which may be the root of a partition tree.
type Part struct {
	Leaves []catalog.Leaf // each is read with ONLY, so that a partition that comes meanwhile is not read by chance
	Where  string         // SQL, every identifier and value in it quoted
}

// Result is what was copied: exact figures, compared with what all sides reported.
type Result struct {
	Rows      int64   // rows of the source
	Bytes     int64   // bytes of the source's stream
	PerTarget []int64 // rows written to each target, in the order of Spec.Targets
	Text      bool    // the format was text
}

// CopyLeaf copies one leaf relation to the targets. It changes settings that matter for the texts of values, of the
// running transactions only (SET LOCAL), search_path among them, which is empty afterwards. On success the rows are in
// the targets' open transactions; nothing is committed. After an error the caller rolls all of them back or closes the
// sessions, whatever pgconn says of them (see copyOut). Errors: ErrRewritten, ErrDamaged, ErrNullRealm, ErrCount,
// those of Postgres (pgconn.PgError) and of the context, wrapped with the table's name and the side.
func CopyLeaf(ctx context.Context, spec Spec) (Result, error) {
	res, err := copyLeaf(ctx, spec)
	if err != nil {
		return Result{}, fmt.Errorf("copy table %s: %w", spec.Leaf.Name, err)
	}
	return res, nil
}

func copyLeaf(ctx context.Context, spec Spec) (Result, error) {
	columns, key, err := copyOrder(spec.Columns, spec.RealmKey)
	if err != nil {
		return Result{}, err
	}
	text := spec.Text || slices.ContainsFunc(columns, func(c catalog.Column) bool { return !c.Binary })
	if !spec.Prepared {
		if err := prepare(ctx, spec); err != nil {
			return Result{}, err
		}
	}
	counters := spec.Counters
	if counters == nil {
		counters = new(Counters)
	}
	before := counters.Bytes.Load()

	c := &copying{
		spec:   spec,
		pipes:  make([]*pipe, len(spec.Targets)),
		copied: make([]int64, len(spec.Targets)),
	}
	for i := range c.pipes {
		c.pipes[i] = newPipe()
	}
	c.ctx, c.stop = context.WithCancelCause(ctx)
	defer c.stop(nil)

	cfg := Config{
		Table: spec.Leaf.Name.String(), Columns: len(columns), Key: key, Targets: len(spec.Targets), Route: spec.Route, Counters: counters,
		Headroom: messageHeader,
		Flush:    func(target int, b []byte) ([]byte, error) { return c.pipes[target].put(c.ctx, b) },
	}
	if key >= 0 {
		cfg.KeyType = columns[key].BaseOID
	}
	if text {
		c.split, err = newSplitter(NewText(cfg))
	} else {
		c.split, err = newSplitter(NewBinary(cfg))
	}
	if err != nil {
		return Result{}, err
	}
	if err := c.run(ctx, copyTo(spec, columns, text), copyFrom(spec, columns, text)); err != nil {
		return Result{}, err
	}
	return Result{Rows: c.split.Rows(), Bytes: counters.Bytes.Load() - before, PerTarget: c.copied, Text: text}, nil
}

func newSplitter[S Splitter](s S, err error) (Splitter, error) { return s, err }

// copying is one running copy.
type copying struct {
	spec   Spec
	split  Splitter
	pipes  []*pipe
	copied []int64 // rows that each target's COPY reported
	ctx    context.Context
	stop   context.CancelCauseFunc
}

// failWith ends everything; the first error stays the cause. Only then do the shards' COPYs fail, with that cause as
// their message, so that their own errors never hide it.
func (c *copying) failWith(err error) {
	c.stop(err)
	cause := context.Cause(c.ctx)
	for _, p := range c.pipes {
		p.fail(cause)
	}
}

func (c *copying) run(ctx context.Context, fromSource, toTarget string) error {
	// The targets' sessions outlive the first error by a grace, in which their COPYs fail in an orderly way.
	targetCtx, cut := context.WithCancel(context.WithoutCancel(ctx))
	defer cut()
	stopGrace := context.AfterFunc(c.ctx, func() {
		c.failWith(context.Cause(c.ctx)) // the caller's context ended, or a part failed
		timer := time.AfterFunc(failGrace, cut)
		context.AfterFunc(targetCtx, func() { timer.Stop() })
	})
	defer stopGrace()

	var group errgroup.Group
	group.Go(func() error {
		err := c.read(fromSource)
		if err != nil {
			c.failWith(err)
		}
		return err
	})
	for i, conn := range c.spec.Targets {
		group.Go(func() error {
			n, err := copyIn(targetCtx, conn, toTarget, c.pipes[i])
			if err != nil {
				err = fmt.Errorf("target %d: %w", i, err)
				c.failWith(err)
				return err
			}
			c.copied[i] = n
			return nil
		})
	}
	err := group.Wait()
	if cause := context.Cause(c.ctx); cause != nil {
		return cause
	}
	if err != nil {
		return err
	}
	for i, want := range c.split.PerTarget() {
		if c.copied[i] != want {
			return fmt.Errorf("%w: %d were sent to target %d, which took %d", ErrCount, want, i, c.copied[i])
		}
	}
	return nil
}

// read runs the source's COPY and ends the pipes when all is well.
func (c *copying) read(sql string) error {
	var out io.Writer = c.split
	if c.spec.Pace != nil {
		out = &paced{c: c}
	}
	sent, err := copyOut(c.ctx, c.spec.Source, sql, out)
	if err != nil {
		return fmt.Errorf("source: %w", err)
	}
	// The count is compared before the last buffers leave: without them no target can complete.
	if sent != c.split.Rows() {
		return fmt.Errorf("%w: the source sent %d, of which %d were seen", ErrCount, sent, c.split.Rows())
	}
	if err := c.split.Close(); err != nil {
		return err
	}
	for _, p := range c.pipes {
		p.end()
	}
	return nil
}

// copyOrder puts the realm key first, so that a row's shard is known before its other, possibly large, values.
func copyOrder(columns []catalog.Column, realmKey string) ([]catalog.Column, int, error) {
	if realmKey == "" {
		return columns, -1, nil
	}
	i := slices.IndexFunc(columns, func(c catalog.Column) bool { return c.Name == realmKey })
	if i < 0 {
		return nil, 0, fmt.Errorf("the realm key %s is not among the columns", tenant.QuoteIdent(realmKey))
	}
	ordered := make([]catalog.Column, 0, len(columns))
	ordered = append(ordered, columns[i])
	ordered = append(ordered, columns[:i]...)
	return append(ordered, columns[i+1:]...), 0, nil
}

// relation names the leaf and the columns. Without columns there is no list: COPY leaves generated ones out by itself.
func relation(spec Spec, columns []catalog.Column) string {
	if len(columns) == 0 {
		return spec.Leaf.Name.Quoted()
	}
	names := make([]string, len(columns))
	for i, c := range columns {
		names[i] = tenant.QuoteIdent(c.Name)
	}
	return spec.Leaf.Name.Quoted() + " (" + strings.Join(names, ", ") + ")"
}

// copyTo uses the table form, which is cheaper than a query and never includes inheriting tables, for all but parts.
func copyTo(spec Spec, columns []catalog.Column, text bool) string {
	if spec.Part != nil {
		names := make([]string, len(columns))
		for i, c := range columns {
			names[i] = tenant.QuoteIdent(c.Name)
		}
		selects := make([]string, len(spec.Part.Leaves))
		for i, l := range spec.Part.Leaves {
			selects[i] = "SELECT " + strings.Join(names, ", ") + " FROM ONLY " + l.Name.Quoted() + " WHERE " + spec.Part.Where
		}
		return "COPY (" + strings.Join(selects, " UNION ALL ") + ") TO STDOUT (FORMAT " + format(text) + ")"
	}
	return "COPY " + relation(spec, columns) + " TO STDOUT (FORMAT " + format(text) + ")"
}

func copyFrom(spec Spec, columns []catalog.Column, text bool) string {
	freeze := ""
	if spec.Freeze {
		freeze = ", FREEZE"
	}
	return "COPY " + relation(spec, columns) + " FROM STDIN (FORMAT " + format(text) + freeze + ")"
}

func format(text bool) string {
	if text {
		return "text"
	}
	return "binary"
}

// prepare does for one leaf or part what the caller did not do for several.
func prepare(ctx context.Context, spec Spec) error {
	for i, conn := range spec.Targets {
		if _, err := conn.Exec(ctx, Settings).ReadAll(); err != nil {
			return fmt.Errorf("target %d: %w", i, err)
		}
	}
	leaves := []catalog.Leaf{spec.Leaf}
	if spec.Part != nil {
		leaves = spec.Part.Leaves
	}
	for _, err := range Prepare(ctx, spec.Source, leaves) {
		if err != nil {
			return err
		}
	}
	return nil
}
