package torture

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
)

// batch is what a large transaction left in the table bulk.
type batch struct {
	realm    string
	from, to int64
}

// keepBatches bounds what a client leaves in the table bulk.
const keepBatches = 6

// next draws a transaction; all that is random of it is drawn here, so that a seed gives the same ones.
func (c *client) next() op {
	for {
		switch n := c.rnd.IntN(100); {
		case n < 22:
			return c.transfer(c.realm(), c.realm())
		case n < 34:
			r := c.realm()
			return c.transfer(r, r)
		case n < 44:
			return c.hot()
		case n < 53:
			return c.document()
		case n < 57:
			if !c.w.cfg.ToastMoves {
				continue
			}
			return c.moveDocument()
		case n < 65:
			return c.travel()
		case n < 69:
			return c.rekey()
		case n < 76:
			return c.swap()
		case n < 84:
			return c.measure()
		case n < 87:
			return c.rate()
		case n < 92:
			return c.mingle()
		case n < 95:
			return c.scratch()
		case n < 97:
			return c.regret()
		default:
			return c.big()
		}
	}
}

// all runs statements one after the other.
func all(ctx context.Context, tx pgx.Tx, steps ...step) error {
	for _, s := range steps {
		if _, err := tx.Exec(ctx, s.sql, s.args...); err != nil {
			return err
		}
	}
	return nil
}

type step struct {
	sql  string
	args []any
}

func do(sql string, args ...any) step { return step{sql, args} }

// script is an op of fixed statements.
func script(name, realm string, steps ...step) op {
	return op{name: name, realm: realm, body: func(ctx context.Context, tx pgx.Tx) error { return all(ctx, tx, steps...) }}
}

// transfer moves money, within a realm or between two, perhaps on different shards.
func (c *client) transfer(from, to string) op {
	a, b, amount := c.rnd.IntN(accountsPerRealm), c.rnd.IntN(accountsPerRealm), 1+c.rnd.IntN(20)
	first, second := do(`UPDATE accounts SET balance = balance - $3 WHERE realm_id = $1 AND id = $2`, from, a, amount), do(`UPDATE accounts SET balance = balance + $3 WHERE realm_id = $1 AND id = $2`, to, b, amount)
	if from > to || (from == to && a > b) { // one order for all, against deadlocks
		first, second = second, first
	}
	return script("transfer", from, first, second)
}

// hot changes a row that everybody wants, several times.
func (c *client) hot() op {
	r := realmName(c.rnd.IntN(2))
	touch := do(`UPDATE accounts SET touched = touched + 1 WHERE realm_id = $1 AND id = 0`, r)
	return script("hot", r, touch, touch, touch)
}

// document changes a row beside its TOASTed value, the value itself, or both.
func (c *client) document() op {
	n := c.rnd.IntN(c.w.cfg.Realms)
	r, id := realmName(n), n*1000+c.rnd.IntN(documentsPerRealm)
	touch := do(`UPDATE documents SET version = version + 1 WHERE id = $1`, id) // wherever it lives by now
	write := do(`UPDATE documents SET body = repeat(md5(random()::text), $2), version = version + 1 WHERE id = $1`, id, 70+c.rnd.IntN(250))
	switch c.rnd.IntN(4) {
	case 0:
		return script("document-write", r, write)
	case 1:
		return script("document-both", r, touch, write, touch)
	default:
		return script("document-touch", r, touch)
	}
}

// moveDocument gives a document to another realm without its TOASTed value being sent, at times and back again.
func (c *client) moveDocument() op {
	n := c.rnd.IntN(c.w.cfg.Realms)
	id, a, b := n*1000+c.rnd.IntN(documentsPerRealm), c.realm(), c.realm()
	move := func(to string) step { return do(`UPDATE documents SET realm_id = $2 WHERE id = $1`, id, to) }
	steps := []step{move(a)}
	if c.rnd.IntN(3) == 0 {
		steps = append(steps, move(b), do(`UPDATE documents SET title = 'moved', version = version + 1 WHERE id = $1`, id), move(a))
	}
	return script("document-move", a, steps...)
}

// travel changes the realm of a row: A to B, A to B to A, or A to B to C, in one transaction.
func (c *client) travel() op {
	id, a, b, d := c.rnd.IntN(travellers), c.realm(), c.realm(), c.realm()
	move := func(to string) step {
		return do(`UPDATE travellers SET realm_id = $2, trips = trips + 1 WHERE id = $1`, id, to)
	}
	switch c.rnd.IntN(3) {
	case 0:
		return script("travel-back", a, move(a), move(b), move(a))
	case 1:
		return script("travel-far", a, move(a), move(b), move(d))
	default:
		return script("travel", a, move(a))
	}
}

// rekey changes a row's key to one that was never used, and sometimes back.
func (c *client) rekey() op {
	r, id, fresh := c.realm(), c.rnd.IntN(travellers), c.id()
	away := do(`UPDATE travellers SET id = $2, note = 'renumbered' WHERE id = $1`, id, fresh)
	back := do(`UPDATE travellers SET id = $1, trips = trips + 1 WHERE id = $2`, id, fresh)
	return script("rekey", r, away, back)
}

// swap exchanges the values of a unique column between two rows: by way of a third value, and at once where the
// constraint is deferred.
func (c *client) swap() op {
	r, a, b := c.realm(), c.rnd.IntN(seatsPerRealm), c.rnd.IntN(seatsPerRealm)
	if a == b {
		b = (a + 1) % seatsPerRealm
	}
	a, b = min(a, b), max(a, b)
	if c.rnd.IntN(2) == 0 {
		return op{name: "swap", realm: r, body: func(ctx context.Context, tx pgx.Tx) error {
			var x, y int
			if err := tx.QueryRow(ctx, `SELECT number FROM seats WHERE realm_id = $1 AND id = $2 FOR UPDATE`, r, a).Scan(&x); err != nil {
				return err
			}
			if err := tx.QueryRow(ctx, `SELECT number FROM seats WHERE realm_id = $1 AND id = $2 FOR UPDATE`, r, b).Scan(&y); err != nil {
				return err
			}
			set := func(id, n int) step {
				return do(`UPDATE seats SET number = $3 WHERE realm_id = $1 AND id = $2`, r, id, n)
			}
			return all(ctx, tx, set(a, -1-a), set(b, x), set(a, y))
		}}
	}
	return script("swap-deferred", r, do(`UPDATE seats s SET rank = o.rank FROM seats o WHERE s.realm_id = $1 AND o.realm_id = $1 AND s.id IN ($2, $3) AND o.id IN ($2, $3) AND o.id <> s.id`, r, a, b))
}

// measure moves rows between partitions.
func (c *client) measure() op {
	r, id, state := c.realm(), c.rnd.IntN(measuresPerRealm), []string{"open", "closed", "lost", "found"}[c.rnd.IntN(4)]
	return script("measure", r, do(`UPDATE measurements SET state = $3, value = value + 1.5, mood = 'busy' WHERE realm_id = $1 AND id = $2`, r, id, state),
		do(`UPDATE measurements SET value = value * 1.0001 WHERE realm_id = $1 AND id = $2`, r, (id+1)%measuresPerRealm))
}

// rate changes the reference table.
func (c *client) rate() op {
	return script("rate", c.realm(), do(`UPDATE rates SET rate = rate + 0.01, changes = changes + 1 WHERE code = $1`, fmt.Sprint("c", c.rnd.IntN(rates))))
}

// mingle changes rows that are equal to others in every column.
func (c *client) mingle() op {
	r, n := c.realm(), c.rnd.IntN(3)
	one := `ctid = (SELECT ctid FROM crowd WHERE realm_id = $1 AND n = $2 LIMIT 1 FOR UPDATE SKIP LOCKED)`
	return script("mingle", r, do(`INSERT INTO crowd VALUES ($1, 'same', $2)`, r, n), do(`DELETE FROM crowd WHERE `+one, r, n),
		do(`UPDATE crowd SET n = $3 WHERE `+one, r, (n+1)%3, n))
}

// scratch empties a table and fills it again.
func (c *client) scratch() op {
	r, id := c.realm(), c.id()
	add := do(`INSERT INTO scratch SELECT $1, $2::bigint * 16 + i, i FROM generate_series(0, 9) i`, r, id)
	more := do(`INSERT INTO scratch SELECT $1, -$2::bigint * 16 - i, i FROM generate_series(0, 9) i`, r, id)
	switch c.rnd.IntN(3) {
	case 0:
		return script("truncate", r, do(`TRUNCATE scratch`), add)
	case 1:
		return script("truncate-between", r, add, do(`TRUNCATE scratch RESTART IDENTITY`), more)
	default:
		return script("scratch", r, add)
	}
}

// regret is rolled back after it changed much.
func (c *client) regret() op {
	r, id := c.realm(), c.id()
	return op{name: "regret", realm: r, body: func(ctx context.Context, tx pgx.Tx) error {
		err := all(ctx, tx, do(`INSERT INTO bulk SELECT $1, $2::bigint << 12 | i, i, repeat(md5(i::text), 6) FROM generate_series(0, $3::int - 1) i`, r, id, min(c.w.cfg.Big, 4096)),
			do(`UPDATE accounts SET balance = balance + 1000000 WHERE realm_id = $1`, r))
		if err != nil {
			return err
		}
		return errOnPurpose
	}}
}

// big is a transaction that the source streams before it ends, with parts that are rolled back, over several realms.
func (c *client) big() op {
	n := 1 + c.w.cfg.Big/2 + c.rnd.IntN(c.w.cfg.Big/2+1)
	mine := batch{realm: c.realm()}
	mine.from = c.id() << 13
	mine.to = mine.from + int64(n)
	other, lost := c.realm(), c.rnd.IntN(3)
	var old *batch
	if len(c.bulk) >= keepBatches {
		old = &c.bulk[0]
		c.bulk = c.bulk[1:]
	}
	c.bulk = append(c.bulk, mine) // if it fails, deleting it later deletes nothing
	insert := `INSERT INTO bulk SELECT $1, $2::bigint + i, i, repeat(md5(i::text), 6) FROM generate_series($3::int, $4::int) i`
	return op{name: "big", realm: mine.realm, body: func(ctx context.Context, tx pgx.Tx) error {
		steps := []step{do(insert, mine.realm, mine.from, 0, n/2)}
		for i := range lost {
			name := "s" + strings.Repeat("x", i)
			steps = append(steps, do(`SAVEPOINT `+name), do(insert, other, mine.from, n/2+1, n), do(`UPDATE bulk SET n = -n WHERE realm_id = $1 AND id BETWEEN $2 AND $3`, mine.realm, mine.from, mine.to),
				do(`ROLLBACK TO SAVEPOINT `+name))
		}
		steps = append(steps, do(`SAVEPOINT kept`), do(insert, mine.realm, mine.from, n/2+1, n), do(`RELEASE SAVEPOINT kept`),
			do(`UPDATE bulk SET n = n + 1 WHERE realm_id = $1 AND id BETWEEN $2 AND $3 AND n % 3 = 0`, mine.realm, mine.from, mine.to))
		if old != nil {
			steps = append(steps, do(`DELETE FROM bulk WHERE realm_id = $1 AND id BETWEEN $2 AND $3`, old.realm, old.from, old.to))
		}
		return all(ctx, tx, steps...)
	}}
}
