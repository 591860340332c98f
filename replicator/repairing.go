package replicator

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/rehomedb/rehome/replicator/catalog"
	"github.com/rehomedb/rehome/replicator/pgoutput"
	"github.com/rehomedb/rehome/replicator/verify"
	"github.com/rehomedb/rehome/tenant"
)

// repairRow is a row as the source has it, in the text form of its values.
type repairRow struct {
	rel *relation
	row pgoutput.Tuple
}

// repairRelation describes a table for the statements of a repair, which carry all copied columns.
func repairRelation(t *catalog.Table) *relation {
	rel := &relation{table: t, name: t.Name, columns: t.Copied(), realm: -1}
	for i, c := range rel.columns {
		if t.Sharded() && c.Name == t.RealmKey {
			rel.realm, rel.bpchar = i, c.BaseOID == bpcharOID
		}
	}
	return rel
}

// among is the condition that a row of t is one of the piece's, and what to bind to it.
func (p *repairPiece) among(encoding string) (string, []any) {
	if p.keys == nil {
		return verify.RowHash(p.table, encoding) + " = ANY ($1::bigint[])", []any{p.hashes}
	}
	return amongKeys(verify.KeyColumns(p.table), p.keys)
}

// amongKeys is the condition that some columns of t have values that are listed, as texts.
func amongKeys(columns []catalog.Column, keys [][]string) (string, []any) {
	params, names, conditions := make([]string, len(columns)), make([]string, len(columns)), make([]string, len(columns))
	args := make([]any, len(columns))
	for i, c := range columns {
		n := strconv.Itoa(i + 1)
		params[i], names[i] = "$"+n+"::text[]", "c"+n
		conditions[i] = c.Equal("t."+tenant.QuoteIdent(c.Name), "u.c"+n)
		values := make([]string, len(keys))
		for k := range keys {
			values[k] = keys[k][i]
		}
		args[i] = values
	}
	return "EXISTS (SELECT FROM unnest(" + strings.Join(params, ", ") + ") u(" + strings.Join(names, ", ") + ") WHERE " + strings.Join(conditions, " AND ") + ")", args
}

// readRepair reads the rows of a piece from the source's snapshot and deals them to the lanes.
func (e *Engine) readRepair(ctx context.Context, at *view, p *repairPiece, lanes int, report *repairReport) ([][]repairRow, error) {
	c, err := e.src.reader(ctx, at.name, "repair")
	if err != nil {
		return nil, err
	}
	defer closeSoon(c)
	if _, err := c.Exec(ctx, verify.Settings); err != nil {
		return nil, fmt.Errorf("source: %w", err)
	}
	if err := asDescribed(ctx, c, p.table); err != nil {
		return nil, err
	}
	out, err := e.readRows(ctx, c, p, lanes, report)
	if pe, ok := errors.AsType[*pgconn.PgError](err); ok && (pe.Code == "42P01" || pe.Code == "42703") {
		return nil, fmt.Errorf("%w: %w", errReshaped, err) // undefined table or column: changed after the position
	}
	if err != nil {
		return nil, err
	}
	// Rewritten or truncated after the position, it shows the snapshot no rows.
	if is, err := verify.ChangedSince(ctx, c, p.table.Name); err != nil || is {
		return nil, cmp.Or(err, errReshaped)
	}
	return out, nil
}

// asDescribed fails if a table is not, in the session's snapshot, as it is described.
func asDescribed(ctx context.Context, c *pgx.Conn, t *catalog.Table) error {
	var same bool
	type column struct {
		Name string `json:"name"`
		Num  int16  `json:"num"`
		Type uint32 `json:"type"`
		Mod  int32  `json:"mod"`
	}
	columns := make([]column, len(t.Columns))
	for i, col := range t.Columns {
		columns[i] = column{col.Name, col.Num, col.TypeOID, col.Mod}
	}
	err := c.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = $1::bigint::oid AND n.nspname = $2 AND c.relname = $3)
		AND NOT EXISTS (SELECT FROM (SELECT attname::text AS name, attnum, atttypid, atttypmod FROM pg_catalog.pg_attribute WHERE attrelid = $1::bigint::oid AND attnum > 0 AND NOT attisdropped) a
			FULL JOIN pg_catalog.jsonb_to_recordset($4::jsonb) d(name text, num int2, type bigint, mod int4)
			ON d.name = a.name AND d.num = a.attnum AND d.type::oid = a.atttypid AND d.mod = a.atttypmod WHERE a.name IS NULL OR d.name IS NULL)`,
		int64(t.OID), t.Name.Schema, t.Name.Name, columns).Scan(&same)
	switch {
	case err != nil:
		return fmt.Errorf("look at table %s: %w", t.Name, err)
	case !same:
		return errReshaped
	}
	return nil
}

// readRows reads the rows and deals them to the lanes.
func (e *Engine) readRows(ctx context.Context, c *pgx.Conn, p *repairPiece, lanes int, report *repairReport) ([][]repairRow, error) {
	rel := repairRelation(p.table)
	names := make([]string, len(rel.columns))
	for i, col := range rel.columns {
		names[i] = "t." + tenant.QuoteIdent(col.Name)
	}
	where, args := p.among(e.Catalogue().Server.Encoding)
	rows, err := c.Query(ctx, "SELECT "+strings.Join(names, ", ")+" FROM "+rel.target()+" t WHERE "+where, append([]any{pgx.QueryResultFormats{pgx.TextFormatCode}}, args...)...)
	if err != nil {
		return nil, fmt.Errorf("read rows of %s: %w", rel.name, err)
	}
	defer rows.Close()
	out := make([][]repairRow, lanes)
	size, count := 0, 0
	for rows.Next() {
		tuple := make(pgoutput.Tuple, len(rel.columns))
		for i, v := range rows.RawValues() {
			tuple[i] = pgoutput.Value{Kind: pgoutput.Null}
			if v != nil {
				tuple[i] = pgoutput.Value{Kind: pgoutput.Text, Data: bytes.Clone(v)}
			}
		}
		size += sizeOf(tuple)
		if count++; p.len() > 1 && (size > repairBytes || count > 10*repairRows) {
			return nil, &pieceTooWideError{}
		}
		row := repairRow{rel: rel, row: tuple}
		if rel.realm < 0 {
			for i := range out {
				out[i] = append(out[i], row)
			}
			continue
		}
		realm := tuple[rel.realm]
		if realm.Kind == pgoutput.Null && lanes > 1 {
			report.say(fmt.Sprintf("a row of %s has no value in its realm key %s at the source: no shard owns it", rel.name, p.table.RealmKey))
			continue
		}
		to := 0
		if lanes > 1 {
			value := realm.Data
			if rel.bpchar {
				value = bytes.TrimRight(value, " ")
			}
			to = e.router.lane(value)
		}
		out[to] = append(out[to], row)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("read rows of %s: %w", rel.name, err)
	}
	return out, nil
}

// repair removes the rows of a piece and inserts those given, in one transaction that is led by a progress row: at the
// position where the lane is, so that the stream goes on as if nothing had been. It runs in the lane, at a barrier.
// With a position until, behind the lane's, the rows are mended: what was committed before it of their keys will be skipped.
func (l *lane) repair(ctx context.Context, p *repairPiece, rows []repairRow, encoding string, until tenant.LSN) (removed int64, err error) {
	conn := l.conn
	defer func() {
		if err == nil || conn.IsClosed() {
			return
		}
		rctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), rollbackPatience)
		defer cancel()
		if _, rerr := conn.Exec(rctx, "ROLLBACK"); rerr != nil {
			closeSoon(conn) // the lane finds it closed, and everything begins anew
			return
		}
		if pe, ok := errors.AsType[*pgconn.PgError](err); ok {
			err = l.refusal(ctx, p, rows, pe)
		}
	}()
	// Repaired is what is on disk: a shard that crashes must not take it back behind the result of the verification.
	if _, err := conn.Exec(ctx, "BEGIN; SET LOCAL synchronous_commit = on; "+verify.Settings); err != nil {
		return 0, asLost(conn.PgConn(), err)
	}
	if _, err := conn.Exec(ctx, `SELECT rehome.advance($1, $2, $3, $4::pg_lsn, $4::pg_lsn)`, pgx.QueryExecModeExec, l.replication, l.epoch, l.pos.seq, l.pos.lsn.String()); err != nil {
		return 0, asLost(conn.PgConn(), err)
	}
	rel := repairRelation(p.table)
	where, args := p.among(encoding)
	tag, err := conn.Exec(ctx, "DELETE FROM "+rel.target()+" t WHERE "+where, append([]any{pgx.QueryExecModeExec}, args...)...)
	if err != nil {
		return 0, asLost(conn.PgConn(), err)
	}
	batch := &pgconn.Batch{}
	for _, r := range rows {
		st, err := insertStatement(&change{op: opInsert, rel: r.rel, row: r.row})
		if err != nil {
			return 0, err
		}
		batch.ExecParams(st.sql(), st.args, nil, nil, nil)
	}
	if len(rows) > 0 {
		if _, err := conn.PgConn().ExecBatch(ctx, batch).ReadAll(); err != nil {
			return 0, asLost(conn.PgConn(), err)
		}
	}
	if until != 0 {
		names := make([]string, len(p.keys))
		for i := range p.keys {
			names[i] = mendedName(p.keys[i])
		}
		if _, err := conn.Exec(ctx, `INSERT INTO rehome.mended (replication, relation, key, watermark) SELECT DISTINCT $1, $2::bigint::oid, k, $3::pg_lsn FROM unnest($4::text[]) k
			ON CONFLICT (replication, relation, key) DO UPDATE SET watermark = excluded.watermark`, pgx.QueryExecModeExec, l.replication, int64(p.table.OID), until.String(), names); err != nil {
			return 0, asLost(conn.PgConn(), err)
		}
	}
	if _, err := conn.Exec(ctx, "COMMIT"); err != nil {
		return 0, asLost(conn.PgConn(), err)
	}
	l.pos.seq++
	return tag.RowsAffected(), nil
}

// rollbackPatience bounds the end of a repair that failed.
const rollbackPatience = 5 * time.Second

// refusal explains why a shard did not take a repair. After a conflict it looks for the rows that are in the way.
func (l *lane) refusal(ctx context.Context, p *repairPiece, rows []repairRow, pe *pgconn.PgError) error {
	switch {
	case pe.Code == sqlstateFenced:
		return fmt.Errorf("%w: %s", ErrFenced, pe.Message)
	case IsRetryable(pe):
		return pe
	case pe.Code == "23505" && len(p.keys) > 0:
		keys, err := l.inTheWay(ctx, p, rows, pe.ConstraintName)
		if err != nil {
			return err
		}
		return &repairConflictError{table: p.table.Name.String(), index: pe.ConstraintName, keys: keys}
	}
	return fmt.Errorf("%w of %s: %s (SQLSTATE %s)", errRefused, p.table.Name, pe.Message, pe.Code)
}

// inTheWay lists, by key, rows at the shard that have values which a unique index keeps for the rows given, and that are
// not among the piece's own.
func (l *lane) inTheWay(ctx context.Context, p *repairPiece, rows []repairRow, index string) ([][]string, error) {
	var names []string
	err := l.conn.QueryRow(ctx, `SELECT coalesce(array_agg(a.attname::text ORDER BY k.n), '{}') FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
		CROSS JOIN unnest(i.indkey) WITH ORDINALITY k(att, n) LEFT JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.att AND k.att > 0
		WHERE (i.indrelid = $1::regclass OR i.indrelid IN (SELECT relid FROM pg_partition_tree($1::regclass))) AND c.relname = $2 AND k.n <= i.indnkeyatts
		HAVING bool_and(k.att > 0)`, pgx.QueryExecModeExec, p.table.Name.Quoted(), index).Scan(&names)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, fmt.Errorf("%w of %s: unique index %s is in the way, and is over an expression", errRefused, p.table.Name, index)
	}
	if err != nil {
		return nil, asLost(l.conn.PgConn(), err)
	}
	if len(rows) == 0 {
		return nil, nil
	}
	at := rows[0].rel.columnIndexes(names)
	if len(at) != len(names) {
		return nil, fmt.Errorf("%w of %s: unique index %s is in the way, and is over a generated column", errRefused, p.table.Name, index)
	}
	columns := make([]catalog.Column, len(at))
	for i, c := range at {
		columns[i] = rows[0].rel.columns[c]
	}
	var values [][]string
	for _, r := range rows {
		v := make([]string, 0, len(at))
		for _, c := range at {
			if r.row[c].Kind == pgoutput.Text {
				v = append(v, string(r.row[c].Data))
			}
		}
		if len(v) == len(at) {
			values = append(values, v)
		}
	}
	keyColumns := verify.KeyColumns(p.table)
	texts := make([]string, len(keyColumns))
	for i, c := range keyColumns {
		texts[i] = "t." + tenant.QuoteIdent(c.Name) + "::text"
	}
	where, args := amongKeys(columns, values)
	found, err := l.conn.Query(ctx, "SELECT ARRAY["+strings.Join(texts, ", ")+"] FROM "+rows[0].rel.target()+" t WHERE "+where, append([]any{pgx.QueryExecModeExec}, args...)...)
	if err != nil {
		return nil, asLost(l.conn.PgConn(), err)
	}
	known := map[string]bool{}
	for _, k := range p.keys {
		known[fmt.Sprintf("%q", k)] = true
	}
	var out [][]string
	var key []string
	_, err = pgx.ForEachRow(found, []any{&key}, func() error {
		if id := fmt.Sprintf("%q", key); !known[id] {
			known[id] = true
			out = append(out, append([]string(nil), key...))
		}
		return nil
	})
	if err != nil {
		return nil, asLost(l.conn.PgConn(), err)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%w of %s: the source's own rows do not fit unique index %s", errRefused, p.table.Name, index)
	}
	return out, nil
}
