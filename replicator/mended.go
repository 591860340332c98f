package replicator

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/replicator/catalog"
	"github.com/rehomedb/rehome/replicator/pgoutput"
	"github.com/rehomedb/rehome/replicator/verify"
	"github.com/rehomedb/rehome/tenant"
)

// A row that was written at a shard by others stops its lane as soon as the source changes it: what the row was like at the
// lane's position can be asked of nobody any more. When a person asks for it (verify --repair), the row is taken from the
// source as it is now, at a position W behind the lane's, and put where it belongs; the shard remembers the key with W in the
// same transaction, and its lane skips what was committed before W of that key. Until the lane has reached W the row is ahead
// of the others, like a table whose copy is younger than the slot's.
//
//   - What is skipped is said by each shard for itself, so a crash between two shards' transactions leaves each of them right.
//   - A change from one key to another, only one of which is mended, stops the lane again; then both are mended, later.
//   - A TRUNCATE forgets the table's mended keys: from it on the lane has the table as the source had it.
//   - A key is recognised by its text, so mending is for keys whose types have one text for equal values.

// maxMends bounds how often one run of an engine mends. Each time all rows of the table in the lane's group are mended.
const maxMends = 1000

// mendedSQL makes the table of mended keys, where one is needed.
const mendedSQL = `CREATE TABLE IF NOT EXISTS rehome.mended (replication text NOT NULL, relation oid NOT NULL, key text NOT NULL, watermark pg_lsn NOT NULL, PRIMARY KEY (replication, relation, key))`

// divergence is a change that does not fit the rows of a shard. It pauses the replication, unless its rows are mended.
type divergence struct {
	failure error
	table   *catalog.Table
	keys    [][]string // nil: they are not known
}

func (d *divergence) Error() string { return d.failure.Error() }
func (d *divergence) Unwrap() error { return d.failure }

// diverges says which rows a failure is about.
func diverges(failure error, changes ...*change) error {
	d := &divergence{failure: failure, table: changes[0].rel.table}
	for _, c := range changes {
		d.add(c)
	}
	return d
}

func (d *divergence) add(c *change) {
	if c.rel == nil || c.rel.table == nil || c.rel.table.OID != d.table.OID || len(d.keys) >= repairRows {
		return
	}
	for _, key := range c.keys() {
		if key != nil && !slices.ContainsFunc(d.keys, func(k []string) bool { return slices.Equal(k, key) }) {
			d.keys = append(d.keys, key)
		}
	}
}

// keys are the texts of the keys that a change is about: of the new row and, if it was sent, of the old one.
func (c *change) keys() (out [][]string) {
	columns := verify.KeyColumns(c.rel.table)
	if len(columns) == 0 {
		return nil
	}
	for _, row := range []pgoutput.Tuple{c.row, c.old} {
		if row == nil {
			continue
		}
		key := make([]string, 0, len(columns))
		for _, col := range columns {
			i := slices.IndexFunc(c.rel.columns, func(x catalog.Column) bool { return x.Name == col.Name })
			if i < 0 || i >= len(row) || row[i].Kind != pgoutput.Text {
				key = nil
				break
			}
			key = append(key, string(row[i].Data))
		}
		if len(out) == 0 || key == nil || !slices.Equal(out[0], key) {
			out = append(out, key)
		}
	}
	return out
}

func mendedName(key []string) string { return fmt.Sprintf("%q", key) }

// mendable reports whether rows of a table are known by the texts of their keys: equal values have one text.
func mendable(t *catalog.Table) bool {
	const textOID, varcharOID, dateOID, timestampOID, timestamptzOID, int2OID, int4OID, int8OID, uuidOID = 25, 1043, 1082, 1114, 1184, 21, 23, 20, 2950 // pg_type.dat
	columns := verify.KeyColumns(t)
	for _, c := range columns {
		if !slices.Contains([]uint32{textOID, varcharOID, dateOID, timestampOID, timestamptzOID, int2OID, int4OID, int8OID, uuidOID}, c.TypeOID) {
			return false
		}
	}
	return len(columns) > 0
}

// loadMended reads what the shard remembers. Keys whose watermark the lane has passed are forgotten.
func (l *lane) loadMended(ctx context.Context) error {
	l.mended = nil
	var there bool
	if err := l.conn.QueryRow(ctx, `SELECT to_regclass('rehome.mended') IS NOT NULL`).Scan(&there); err != nil || !there {
		return err
	}
	if _, err := l.conn.Exec(ctx, `DELETE FROM rehome.mended WHERE replication = $1 AND watermark <= $2::pg_lsn`, l.replication, l.pos.lsn.String()); err != nil {
		return err
	}
	rows, err := l.conn.Query(ctx, `SELECT relation, key, watermark::text FROM rehome.mended WHERE replication = $1`, l.replication)
	if err != nil {
		return err
	}
	var oid uint32
	var key string
	var at tenant.LSN
	_, err = pgx.ForEachRow(rows, []any{&oid, &key, &at}, func() error {
		if l.mended == nil {
			l.mended = map[uint32]map[string]tenant.LSN{}
		}
		if l.mended[oid] == nil {
			l.mended[oid] = map[string]tenant.LSN{}
		}
		l.mended[oid][key] = at
		return nil
	})
	l.mends = l.mended != nil
	return err
}

// covers counts the keys of a change, and those of them whose row at the lane's shard has the transaction already.
func (s *stream) covers(i int, c *change) (covered, keys int) {
	list := c.keys()
	of := s.lanes[i].mended[c.rel.table.OID]
	for _, key := range list {
		if at, ok := of[mendedName(key)]; ok && key != nil && s.commit < at {
			covered++
		}
	}
	return covered, len(list)
}

// hasMended reports whether a lane skips a change, because the shard's row has it already. Only the reader calls it.
func (s *stream) hasMended(i int, c *change) (bool, error) {
	mended := s.lanes[i].mended
	if mended == nil {
		return false, nil
	}
	if c.op == opTruncate {
		for _, rel := range c.truncate.rels {
			delete(mended, rel.table.OID) // and the shard forgets them with the TRUNCATE
		}
		return false, nil
	}
	if mended[c.rel.table.OID] == nil {
		return false, nil
	}
	covered, keys := s.covers(i, c)
	switch covered {
	case 0:
		return false, nil
	case keys:
		return true, nil
	}
	return false, diverges(stop("divergence", divergenceRemedy, "shard %s: %s (%s) changed its key, and only one of both rows is mended", s.lanes[i].shard.Name, c.rel.name, c.rel.keyText(c)), c)
}

// carriesMended settles a row that moves with large values on the way, if one side of the move is skipped.
func (s *stream) carriesMended(from, to int, gives, needs *change) error {
	k := gives.gives
	if k == nil || s.skip[from] || s.skip[to] {
		return nil
	}
	left, _ := s.covers(from, gives)
	entered, _ := s.covers(to, needs)
	switch {
	case left > 0 && entered == 0:
		return diverges(stop("divergence", divergenceRemedy, "shard %s: %s (%s) moved, and only the row that it left is mended", s.lanes[from].shard.Name, gives.rel.name, gives.rel.keyText(gives)), gives, needs)
	case entered > 0:
		k.unused = true
	}
	return nil
}

// SetMending lets the engine mend rows that stop it (see mended.go), or no more.
func (e *Engine) SetMending(on bool) { e.mending.Store(on) }

// mend takes the rows of a divergence from the source as they are now.
func (e *Engine) mend(ctx context.Context, d *divergence) error {
	if !mendable(d.table) || len(d.keys) == 0 {
		return fmt.Errorf("%w: rows of %s cannot be told by the text of a key", errRefused, d.table.Name)
	}
	report := newRepairReport()
	p := repairPiece{table: d.table, keys: d.keys}
	for range repairRounds {
		err := e.mendOnce(ctx, &p, report)
		if conflict, ok := errors.AsType[*repairConflictError](err); ok && len(conflict.keys) > 0 && len(p.keys)+len(conflict.keys) <= 10*repairRows {
			p.keys = slices.Concat(p.keys, conflict.keys)
			continue
		}
		if err == nil {
			e.log.Warn("rows were taken from the source anew", "table", d.table.Name.String(), "rows", len(p.keys), "because", d.Error())
			e.cfg.Journal.Note(ctx, "mended", map[string]any{"table": d.table.Name.String(), "rows": len(p.keys), "reason": d.Error()})
		}
		return err
	}
	return fmt.Errorf("%w: the rows that are in the way of others do not become fewer", errRefused)
}

// mendOnce mends at one position, shard after shard, while no lane runs.
func (e *Engine) mendOnce(ctx context.Context, p *repairPiece, report *repairReport) error {
	at, err := e.src.temporarySnapshot(ctx, "mend")
	if err != nil {
		return err
	}
	defer at.close()
	rows, err := e.readRepair(ctx, at, p, len(e.cfg.Shards), report)
	if err != nil {
		return err
	}
	for i, sh := range e.cfg.Shards {
		l := &lane{shard: sh, replication: e.cfg.Replication, epoch: e.cfg.Epoch, pass: e.cfg.Pass.Reveal(), in: newInbox()}
		if err := l.open(ctx); err != nil {
			return err
		}
		mctx, cancel := context.WithTimeout(ctx, repairHold)
		_, err := l.conn.Exec(mctx, mendedSQL)
		if err == nil {
			_, err = l.repair(mctx, p, rows[i], e.Catalogue().Server.Encoding, at.lsn)
		}
		cancel()
		l.close()
		if err != nil {
			return fmt.Errorf("shard %s: %w", sh.Name, err)
		}
	}
	return nil
}

// mendAfter mends the rows that stopped the engine, if that is asked for. What it returns in the place of the error that
// stopped it is nil if it may go on.
func (e *Engine) mendAfter(ctx context.Context, err error, times *int) error {
	d, ok := errors.AsType[*divergence](err)
	if !ok || !e.mending.Load() || *times >= maxMends {
		return err
	}
	*times++
	merr := e.mend(ctx, d)
	if merr == nil || errors.Is(merr, ErrFenced) || IsRetryable(merr) {
		return merr
	}
	reason, _ := describe(err)
	return stop("divergence", "cancel the replication and start it again", "%s; it could not be mended: %v", reason, merr)
}
