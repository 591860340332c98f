package replicator

import (
	"context"
	"time"

	"github.com/rehomedb/rehome/replicator/catalog"
	"github.com/rehomedb/rehome/tenant"
)

// InstallShardSQL makes what a replication keeps at a shard.
const InstallShardSQL = installShardSQL

// Book is what a copy records of its progress.
type Book struct{ l *ledger }

// NewBook makes one that is quicker, and less patient, than a copy's.
func NewBook(cfg Config, every, patience time.Duration) Book {
	l := newLedger(&Engine{cfg: cfg, log: cfg.Logger})
	l.every, l.patience = every, patience
	return Book{l}
}

func bookUnits(relation string) []unit {
	return []unit{{leaf: catalog.Leaf{Name: tenant.TableName{Schema: "public", Name: relation}}}}
}

// Begin tells of a table, and returns what counts a row of it.
func (b Book) Begin(relation string) (count func()) {
	c := b.l.begin(bookUnits(relation))[0]
	return func() { c.Rows.Add(1) }
}

// Finish tells that every shard has a table.
func (b Book) Finish(relation string) { b.l.finish(bookUnits(relation)) }

// Run writes figures until done is closed.
func (b Book) Run(ctx context.Context, done <-chan struct{}) { b.l.run(ctx, done) }
