package verify

import (
	"context"
	"errors"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/tenant"
)

// compareAside compares in the background.
func (p *pair) compareAside() <-chan error {
	out := make(chan error, 1)
	go func() {
		v, err := Compare(p.t.Context(), p.in)
		if err == nil && !v.Clean {
			err = errors.New("it is not clean, and says no more")
		}
		out <- err
	}()
	return out
}

func gaveWay(err error) bool {
	e, ok := errors.AsType[*tenant.Error](err)
	return ok && e.Code == CodeGaveWay && e.Kind == tenant.KindUnavailable
}

// TestGivesWay has somebody wait, on each side, for a table that is being read, while another side keeps the comparison from
// going on.
func TestGivesWay(t *testing.T) {
	t.Parallel()
	for _, side := range []string{"source", "shard"} {
		t.Run(side, func(t *testing.T) {
			t.Parallel()
			pair := newPair(t, placement("a"), `CREATE TABLE t (realm text, id int PRIMARY KEY, v text)`, `CREATE TABLE t (realm text, id int PRIMARY KEY, v text)`,
				`INSERT INTO t SELECT 'r', g, g FROM generate_series(1, 100) g`, map[string]string{"t": "realm"})
			slow, changed := pair.shards["a"], pair.source
			if side == "shard" {
				slow, changed = changed, slow
			}
			locked := make(chan error, 1)
			pair.in.Admit = func(ctx context.Context) error { // behind the comparison of the schemas
				_, err := slow.Exec(ctx, `BEGIN; LOCK TABLE t`)
				locked <- err
				return err
			}
			done := pair.compareAside()
			if err := <-locked; err != nil {
				t.Fatal(err)
			}
			waits := func(c *pgx.Conn, granted bool) bool {
				var is bool
				if err := c.QueryRow(t.Context(), `SELECT EXISTS (SELECT FROM pg_locks WHERE relation = 't'::regclass AND mode = 'AccessShareLock' AND granted = $1 AND pid <> pg_backend_pid())`, granted).Scan(&is); err != nil {
					t.Fatal(err)
				}
				return is
			}
			for !waits(slow, false) || !waits(changed, true) {
				select {
				case err := <-done:
					t.Fatalf("it ended early: %v", err)
				default:
				}
			}
			run(t, changed, `SET lock_timeout = '20s'`)
			run(t, changed, `ALTER TABLE t ADD COLUMN w int`)
			run(t, slow, `ROLLBACK`)
			if err := <-done; !gaveWay(err) {
				t.Errorf("%v", err)
			}
		})
	}
}

// TestChangedAfterThePosition reads tables that older snapshots see otherwise than their position had them.
func TestChangedAfterThePosition(t *testing.T) {
	t.Parallel()
	const both = `CREATE TABLE t (realm text, id int PRIMARY KEY, v text); CREATE TABLE p (realm text, id int PRIMARY KEY) PARTITION BY RANGE (id);
		CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (50); CREATE TABLE p2 PARTITION OF p DEFAULT;`
	for name, c := range map[string]struct {
		sql     string
		harmful bool
	}{
		"nothing":            {`SELECT 1`, false},
		"a column more":      {`ALTER TABLE t ADD COLUMN w int DEFAULT 4; INSERT INTO t VALUES ('r', -1, 'x')`, false},
		"an index":           {`CREATE INDEX ON t (v)`, false},
		"truncated":          {`TRUNCATE t`, true},
		"rewritten":          {`ALTER TABLE t ALTER v TYPE int USING v::int; ALTER TABLE t ALTER v TYPE text`, true},
		"dropped":            {`DROP TABLE t`, true},
		"another table":      {`ALTER TABLE t RENAME TO u; CREATE TABLE t (realm text, id int PRIMARY KEY, v text)`, true},
		"a column less":      {`ALTER TABLE t DROP COLUMN v`, true},
		"a column of a name": {`ALTER TABLE t DROP COLUMN v; ALTER TABLE t ADD COLUMN v text DEFAULT 'x'`, true},
		"partition detached": {`ALTER TABLE p DETACH PARTITION p1`, true},
		"partition emptied":  {`TRUNCATE p1`, true},
		"partition attached": {`CREATE TABLE p3 (realm text, id int PRIMARY KEY); ALTER TABLE p ATTACH PARTITION p3 FOR VALUES FROM (1000) TO (2000)`, true},
	} {
		for _, side := range []string{"source", "shard"} {
			t.Run(name+" at the "+side, func(t *testing.T) {
				t.Parallel()
				pair := newPair(t, placement("a"), both, both, `INSERT INTO t SELECT 'r', g, g FROM generate_series(1, 100) g; INSERT INTO p SELECT 'r', g FROM generate_series(1, 100) g`, map[string]string{"t": "realm", "p": "realm"})
				conn := pair.source
				if side == "shard" {
					conn = pair.shards["a"]
				}
				pair.in.Source, pair.in.Shards["a"] = exported(t, pair.source.Config()), exported(t, pair.shards["a"].Config())
				run(t, conn, c.sql)
				v, err := Compare(t.Context(), pair.in)
				if c.harmful && (!gaveWay(err) || v.Clean || v.Unfinished < 1 || len(v.Tables) > 1) {
					t.Errorf("%v %+v", err, v)
				}
				if !c.harmful && (err != nil || !v.Clean) {
					t.Errorf("%v %+v", err, v)
				}
			})
		}
	}
}

// exported opens sessions that all see what is there now.
func exported(t *testing.T, cfg *pgx.ConnConfig) Sessions {
	t.Helper()
	open := func(ctx context.Context) (*pgx.Conn, error) {
		conn, err := pgx.ConnectConfig(ctx, cfg.Copy())
		if err == nil {
			_, err = conn.Exec(ctx, `BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY`)
		}
		return conn, err
	}
	holder, err := open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = holder.Close(context.Background()) })
	var name string
	if err := holder.QueryRow(t.Context(), `SELECT pg_export_snapshot()`).Scan(&name); err != nil {
		t.Fatal(err)
	}
	return func(ctx context.Context) (*pgx.Conn, error) {
		conn, err := open(ctx)
		if err == nil {
			_, err = conn.Exec(ctx, `SET TRANSACTION SNAPSHOT `+tenant.QuoteLiteral(name))
		}
		return conn, err
	}
}
