package schema

import (
	"context"
	"fmt"
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

// Builder opens a session at a shard; the caller closes it. Builders and RestorePost may work at one shard at the same time
// only for different tables.
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

// Tables creates the indexes and keys of tables and analyses them; of several in one transaction, which should be small ones:
// what surrounds each would cost more than they do. After an error the Builder is of no use any more; what was created stays,
// and RestorePost creates the rest.
func (b *Builder) Tables(ctx context.Context, names []tenant.TableName) error {
	if len(names) > 1 {
		if b.together(ctx, names) == nil {
			return nil
		}
		// One by one it is found out which of them it was.
		if err := simple(ctx, b.conn, "ROLLBACK"); err != nil {
			return err
		}
	}
	for _, name := range names {
		if err := b.run.steps(ctx, b.conn, b.groups[name]); err != nil {
			return err
		}
		if err := simple(ctx, b.conn, "ANALYZE "+name.Quoted()); err != nil {
			return fmt.Errorf("analyse %s: %w", name, err)
		}
	}
	return nil
}

// together does what Tables does in one round trip. After an error its transaction is still open.
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
	sql.WriteString("ANALYZE " + strings.Join(quoted, ", ") + ";\nCOMMIT")
	return simple(ctx, b.conn, sql.String())
}

// Close ends the session.
func (b *Builder) Close() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = b.conn.Close(ctx)
}
