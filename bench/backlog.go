package main

import (
	"context"
	"fmt"
	"strconv"
)

// The full sizes of the backlogs; -scale takes a part of them.
const (
	backlogRows   = 1_000_000 // of the table that is written, and of a large transaction
	backlogTxns   = 200_000   // small transactions: 1 update and 1 insert each
	tpcbTxns      = 100_000
	tpcbScale     = 5    // branches: the hot rows
	backlogRealms = 1000 // realms of the rows
	// lastRows is how many rows the last transaction of a backlog writes, each in a realm of its own, so that each of a few
	// shards surely owns some: who shows them all has everything before them.
	lastRows = 64
)

// smallDDL are the tables of the small and the large transactions. Realm and id are the key, as a table that is to be
// spread over shards has it; every contender has the same.
const smallDDL = `
CREATE TABLE items (realm_id text NOT NULL, id bigint NOT NULL, n int NOT NULL DEFAULT 0, note text NOT NULL, PRIMARY KEY (realm_id, id));
CREATE TABLE entries (realm_id text NOT NULL, id bigint NOT NULL, item bigint NOT NULL, note text NOT NULL, PRIMARY KEY (realm_id, id));
CREATE TABLE bulk (realm_id text NOT NULL, id bigint NOT NULL, n int NOT NULL, note text NOT NULL, PRIMARY KEY (realm_id, id));
CREATE TABLE pings (realm_id text NOT NULL, id bigint NOT NULL, PRIMARY KEY (realm_id, id));
CREATE TABLE arrived (realm_id text NOT NULL, id bigint NOT NULL, PRIMARY KEY (realm_id, id));
CREATE SEQUENCE entry;
`

// tpcbDDL is what pgbench -i does not make. Its rows carry the branch, the realm of TPC-B.
const tpcbDDL = `CREATE TABLE arrived (bid int NOT NULL, id bigint NOT NULL, PRIMARY KEY (bid, id));`

// tpcbSchema is all of it, for contenders that do not carry the schema.
const tpcbSchema = `
CREATE TABLE pgbench_branches (bid int NOT NULL PRIMARY KEY, bbalance int, filler char(88)) WITH (fillfactor = 100);
CREATE TABLE pgbench_tellers (tid int NOT NULL PRIMARY KEY, bid int, tbalance int, filler char(84)) WITH (fillfactor = 100);
CREATE TABLE pgbench_accounts (aid int NOT NULL PRIMARY KEY, bid int, abalance int, filler char(84)) WITH (fillfactor = 100);
CREATE TABLE pgbench_history (tid int, bid int, aid int, delta int, mtime timestamp, filler char(22));
` + tpcbDDL

// smallScript is a transaction of the backlog of small ones, and of the load under which latency is measured.
const smallScript = `\set i random(1, :rows)
\set r :i % :realms
BEGIN;
UPDATE items SET n = n + 1 WHERE realm_id = 'r' || :r::text AND id = :i::bigint;
INSERT INTO entries SELECT 'r' || :r::text, nextval('entry'), :i::bigint, 'what a small transaction says';
COMMIT;
`

// backlog is WAL that every contender drains.
type backlog struct {
	name   string // as the report has it
	key    string // as the aims name it
	txns   int64
	rows   int64    // changes in it, without the last transaction
	tables []string // that it changes
	write  func(ctx context.Context, b *drainBed) error
}

// large reports whether it is one large transaction.
func (l backlog) large() bool { return l.txns == 1 }

// smallBacklogs are those of the small database.
func smallBacklogs(scale float64) []backlog {
	rows, txns := scaled(backlogRows, scale), scaled(backlogTxns, scale)
	return []backlog{
		{
			name: fmt.Sprintf("%d transactions of 1 update and 1 insert", txns), key: "small", txns: txns, rows: 2 * txns, tables: []string{"items", "entries"},
			write: func(ctx context.Context, b *drainBed) error {
				return b.pgbench(ctx, smallScript, txns, "-D", "rows="+strconv.FormatInt(rows, 10), "-D", "realms="+strconv.Itoa(backlogRealms))
			},
		},
		{
			name: fmt.Sprintf("one transaction of %d inserts", rows), key: "inserts", txns: 1, rows: rows, tables: []string{"bulk"},
			write: func(ctx context.Context, b *drainBed) error {
				return b.exec(ctx, `INSERT INTO bulk SELECT 'r' || (g % $1::int), g, g, 'a row of a large transaction ' || g FROM generate_series(1, $2::int) g`, backlogRealms, rows)
			},
		},
		{
			name: fmt.Sprintf("one transaction of %d updates", rows), key: "updates", txns: 1, rows: rows, tables: []string{"items"},
			write: func(ctx context.Context, b *drainBed) error { return b.exec(ctx, `UPDATE items SET n = n + 1`) },
		},
	}
}

// tpcbBacklog is pgbench's own transaction: 3 updates, one of them of a hot row, and 1 insert.
func tpcbBacklog(scale float64) backlog {
	txns := scaled(tpcbTxns, scale)
	return backlog{
		name: fmt.Sprintf("TPC-B: %d transactions on %d hot branches", txns, tpcbScale), key: "tpcb", txns: txns, rows: 4 * txns,
		tables: []string{"pgbench_accounts", "pgbench_tellers", "pgbench_branches", "pgbench_history"},
		write:  func(ctx context.Context, b *drainBed) error { return b.pgbench(ctx, "", txns) },
	}
}

// scaled is a part of a full size, never less than what makes sense at all.
func scaled(full int, scale float64) int64 { return max(200, int64(float64(full)*scale)) }
