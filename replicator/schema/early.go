package schema

import (
	"context"
	"fmt"
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

// Table creates a table's indexes and keys and analyses it. After an error the Builder is of no use any more; what was
// created stays, and RestorePost creates the rest.
func (b *Builder) Table(ctx context.Context, name tenant.TableName) error {
	if err := b.run.steps(ctx, b.conn, b.groups[name]); err != nil {
		return err
	}
	if err := simple(ctx, b.conn, "ANALYZE "+name.Quoted()); err != nil {
		return fmt.Errorf("analyse %s: %w", name, err)
	}
	return nil
}

// Close ends the session.
func (b *Builder) Close() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = b.conn.Close(ctx)
}
