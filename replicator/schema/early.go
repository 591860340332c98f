package schema

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/tenant"
)

// Builder creates the indexes and keys of single tables before RestorePost, which finds them done: of tables whose rows are
// there while those of others are still coming. It creates only what depends on nothing else behind the copy.
type Builder struct {
	conn   *pgx.Conn
	run    *postRun
	groups map[tenant.TableName][]*item
}

// Builder opens a session at a shard; the caller closes it. Several may work at one shard at the same time, but not for the same
// item, and none beside RestorePost.
func (a *Archive) Builder(ctx context.Context, dsn tenant.DSN, replication string) (*Builder, error) {
	if a.items == nil {
		return nil, errNotDumped
	}
	conn, err := a.open(ctx, dsn)
	if err != nil {
		return nil, fmt.Errorf("create indexes and constraints: %w", err)
	}
	b := &Builder{conn: conn, groups: map[tenant.TableName][]*item{}}
	done, err := doneItems(ctx, conn, replication)
	if err != nil {
		b.Close()
		return nil, err
	}
	b.run = &postRun{archive: a, replication: replication, done: done, progress: func(int, int, string) {}}
	tables := map[int]tenant.TableName{}
	for _, it := range a.items {
		if it.desc == "TABLE" {
			tables[it.id] = tenant.TableName{Schema: it.namespace, Name: it.tag}
		}
	}
	groups, _ := a.plan()
	for _, g := range groups {
		for _, d := range g[0].deps {
			if name, ok := tables[d]; ok {
				b.groups[name] = g
			}
		}
	}
	return b, nil
}

// Keys creates what a table has of keys, which lock it against everything, and tells how many indexes are left, which can be
// created by several Builders at once. After an error the Builder is of no use any more, as with its other methods; what was
// created stays, and RestorePost creates the rest.
func (b *Builder) Keys(ctx context.Context, name tenant.TableName) (indexes int, err error) {
	keys, free := b.divide(name)
	return len(free), b.run.steps(ctx, b.conn, keys)
}

// Index creates one of a table's indexes that Keys left, from 0 on.
func (b *Builder) Index(ctx context.Context, name tenant.TableName, n int) error {
	_, free := b.divide(name)
	return b.run.steps(ctx, b.conn, free[n:n+1])
}

// divide tells which of a table's items depend on nothing but the table, and lock it against writing only.
func (b *Builder) divide(name tenant.TableName) (keys, free []*item) {
	needed := map[int]bool{}
	for _, it := range b.groups[name] {
		for _, d := range it.deps {
			needed[d] = true
		}
	}
	ids := map[int]bool{}
	for _, it := range b.groups[name] {
		ids[it.id] = true
	}
	for _, it := range b.groups[name] {
		if it.desc == "INDEX" && !needed[it.id] && !slices.ContainsFunc(it.deps, func(d int) bool { return ids[d] }) {
			free = append(free, it)
		} else {
			keys = append(keys, it)
		}
	}
	return keys, free
}

// Analyse gives the planner figures of a table.
func (b *Builder) Analyse(ctx context.Context, name tenant.TableName) error {
	if err := simple(ctx, b.conn, "ANALYZE "+name.Quoted()); err != nil {
		return fmt.Errorf("analyse %s: %w", name, err)
	}
	return nil
}

// Tables creates the indexes and keys of tables and analyses them; of several in one transaction, which should be small ones:
// what surrounds each would cost more than they do.
func (b *Builder) Tables(ctx context.Context, names []tenant.TableName) error {
	if len(names) > 1 {
		err := b.together(ctx, names)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil || b.conn.IsClosed() {
			return fmt.Errorf("create indexes and constraints of %d tables, %s the first: %w", len(names), names[0], err)
		}
		// One by one it is found out which of them it was.
		if rerr := simple(ctx, b.conn, "ROLLBACK"); rerr != nil {
			return fmt.Errorf("create indexes and constraints of %d tables, %s the first: %w", len(names), names[0], errors.Join(err, rerr))
		}
	}
	for _, name := range names {
		if err := b.run.steps(ctx, b.conn, b.groups[name]); err != nil {
			return err
		}
		if err := b.Analyse(ctx, name); err != nil {
			return err
		}
	}
	return nil
}

// together does what Tables does in two round trips. After an error its transaction may still be open.
//
// The COMMIT is not sent with the rest: a server goes on with what it has of a client that is gone, and would commit what
// RestorePost, which comes next, creates too. Without it, it rolls back when it finds nobody there.
func (b *Builder) together(ctx context.Context, names []tenant.TableName) error {
	var sql strings.Builder
	var done []string
	quoted := make([]string, len(names))
	sql.WriteString("BEGIN;\n")
	for i, name := range names {
		quoted[i] = name.Quoted()
		for _, it := range b.groups[name] {
			if b.run.done[it.key] {
				continue
			}
			sql.WriteString(b.run.archive.statements(ctx, it))
			sql.WriteString("\n;\n")
			done = append(done, "("+tenant.QuoteLiteral(b.run.replication)+", "+tenant.QuoteLiteral(it.key)+")")
		}
	}
	if len(done) > 0 {
		sql.WriteString("INSERT INTO rehome.ddl_done (replication, item) VALUES " + strings.Join(done, ", ") + ";\n")
	}
	sql.WriteString("ANALYZE " + strings.Join(quoted, ", "))
	if err := simple(ctx, b.conn, sql.String()); err != nil {
		return err
	}
	return simple(ctx, b.conn, "COMMIT")
}

// Close ends the session.
func (b *Builder) Close() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = b.conn.Close(ctx)
}
