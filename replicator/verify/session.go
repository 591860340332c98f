package verify

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/rehomedb/rehome/tenant"
)

// closeTimeout bounds the closing of sessions after the work, or its context, ended.
const closeTimeout = 5 * time.Second

// side is a session of the source (name "") or of a shard.
type side struct {
	name string
	conn *pgx.Conn
}

func (s *side) String() string {
	if s.name == "" {
		return "source"
	}
	return "shard " + s.name
}

// sides are the sessions that one worker uses: all see the same position.
type sides struct {
	source side
	shards []side // by name
}

func (s *sides) all() []*side {
	out := []*side{&s.source}
	for i := range s.shards {
		out = append(out, &s.shards[i])
	}
	return out
}

func openSides(ctx context.Context, in Input) (*sides, error) {
	s := &sides{}
	for _, name := range slices.Sorted(maps.Keys(in.Shards)) {
		s.shards = append(s.shards, side{name: name})
	}
	var group errgroup.Group
	for _, one := range s.all() {
		open := in.Source
		if one.name != "" {
			open = in.Shards[one.name]
		}
		group.Go(func() error {
			conn, err := open(ctx)
			if err != nil {
				return fmt.Errorf("%s: open a session: %w", one, err)
			}
			one.conn = conn
			if conn.PgConn().TxStatus() != 'T' {
				return fmt.Errorf("%s: %w", one, errNoTransaction)
			}
			if _, err := conn.Exec(ctx, settings+"; "+prepareChanged+"; "+markPart); err != nil {
				return fmt.Errorf("%s: %w", one, err)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

var errNoTransaction = errors.New("the session is not in a transaction, so it has no snapshot")

func (s *sides) close() {
	for _, one := range s.all() {
		if one.conn != nil {
			closeSession(one.conn)
		}
	}
}

// closeSession ends a session. A query that was interrupted is waited for, since its locks go with it only.
func closeSession(c *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	_ = c.Close(ctx) // a read-only transaction: nothing can be lost
	select {
	case <-c.PgConn().CleanupDone():
	case <-ctx.Done():
	}
}

// class is what a scan tells of one class of rows, or of all. The zero value is that of no rows.
type class struct {
	rows       int64
	sum1, sum2 big.Int
}

func (c class) plus(o class) class {
	out := class{rows: c.rows + o.rows}
	out.sum1.Add(&c.sum1, &o.sum1)
	out.sum2.Add(&c.sum2, &o.sum2)
	return out
}

func (c class) equal(o class) bool {
	return c.rows == o.rows && c.sum1.Cmp(&o.sum1) == 0 && c.sum2.Cmp(&o.sum2) == 0
}

// newClass takes the sums as the database writes them; nil is that of no rows.
func newClass(rows int64, sum1, sum2 *string) (class, error) {
	out := class{rows: rows}
	for _, sum := range []struct {
		text *string
		into *big.Int
	}{{sum1, &out.sum1}, {sum2, &out.sum2}} {
		if sum.text == nil {
			continue
		}
		if _, ok := sum.into.SetString(*sum.text, 10); !ok {
			return out, fmt.Errorf("the sum %q is not a whole number", *sum.text)
		}
	}
	return out, nil
}

// digest is one table on one side, by class.
type digest map[int64]class

func (d digest) rows() int64 {
	var n int64
	for _, c := range d {
		n += c.rows
	}
	return n
}

// add adds the classes of another shard.
func (d digest) add(o digest) {
	for id, c := range o {
		d[id] = d[id].plus(c)
	}
}

// differing lists the classes that are not the same in both, in order.
func (d digest) differing(o digest) []int64 {
	out := map[int64]bool{}
	for id, c := range d {
		if x, ok := o[id]; !ok || !c.equal(x) {
			out[id] = true
		}
	}
	for id := range o {
		if _, ok := d[id]; !ok {
			out[id] = true
		}
	}
	return slices.Sorted(maps.Keys(out))
}

// scan reads a table's classes.
func (s *side) scan(ctx context.Context, sql string) (digest, error) {
	rows, err := s.conn.Query(ctx, sql)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", s, err)
	}
	d := digest{}
	var id, n int64
	var sum1, sum2 *string
	_, err = pgx.ForEachRow(rows, []any{&id, &n, &sum1, &sum2}, func() (err error) {
		d[id], err = newClass(n, sum1, sum2)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", s, err)
	}
	return d, nil
}

// misplaced counts the rows whose realm the shard does not own.
func (s *side) misplaced(ctx context.Context, st statements, p tenant.Placement) (int64, error) {
	if ownsAll(p, s.name) {
		return 0, nil
	}
	var n int64
	if err := s.conn.QueryRow(ctx, misplacedCount(st.byRealm, p, s.name)).Scan(&n); err != nil {
		return 0, fmt.Errorf("%s: find misplaced rows: %w", s, err)
	}
	return n, nil
}

// misplacedTold bounds how many misplaced rows are told of for a repair, of one table on one shard.
const misplacedTold = 200_000

// misplacedRows names some of them, by key.
func (s *side) misplacedRows(ctx context.Context, st statements, p tenant.Placement, limit int) ([]entry, error) {
	here, elsewhere := pins(p, s.name)
	rows, err := s.conn.Query(ctx, misplaced("k, h, kv", st.rowRealm, p, s.name)+" LIMIT $3", here, elsewhere, limit)
	if err != nil {
		return nil, fmt.Errorf("%s: name misplaced rows: %w", s, err)
	}
	out, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (e entry, err error) {
		e.shard = s.name
		var values []*string
		err = row.Scan(&e.key, &e.h1, &values)
		e.values.set(values)
		return e, err
	})
	if err != nil {
		return nil, fmt.Errorf("%s: name misplaced rows: %w", s, err)
	}
	slices.SortFunc(out, func(a, b entry) int { return strings.Compare(a.key, b.key) })
	return out, nil
}
