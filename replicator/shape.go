package replicator

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/replicator/catalog"
	"github.com/rehomedb/rehome/replicator/ddl"
	"github.com/rehomedb/rehome/tenant"
)

// shapeDoc is the source's schema as of a position. Each shard keeps the one that belongs to its own position, in
// rehome.shape, and replaces it in the transaction that applies a change of the schema: whatever dies, a shard's rows,
// its schema and what it knows of the source's agree. A reader that begins again at the slowest shard begins with that
// shard's, meets the later changes again, and lanes that have them skip them.
type shapeDoc struct {
	Catalogue *catalog.Catalogue `json:"catalogue"`
	Shape     *ddl.Shape         `json:"shape,omitempty"` // nil: the source has no event triggers
}

// shapes is what the stream knows of the source's schema. Only the reader writes it.
type shapes struct {
	doc     shapeDoc
	slot    *catalog.Catalogue // as it was when the slot was made: what the copy's notes name tables by
	asked   tenant.LSN         // a person resumed the replication that was paused before this transaction, and before none later
	stopped tenant.LSN         // the transaction that it is paused before
	renewed bool               // the shards took a table's new columns over from a person
}

// followDDL installs the event triggers where the source's role may, and reports whether they are there.
func (e *Engine) followDDL(ctx context.Context) (bool, error) {
	c, err := e.src.conn(ctx, "setup")
	if err != nil {
		return false, err
	}
	defer closeSoon(c)
	may, err := ddl.Permitted(ctx, c)
	if err != nil || !may {
		if err == nil {
			e.cfg.Journal.Note(ctx, "ddl", map[string]any{"notes": []string{"the role at the source may not create event triggers: a change of its schema will pause the replication"}})
		}
		return false, err
	}
	return true, e.changeSource(ctx, []tenant.SourceChange{ddl.SourceChange(e.cfg.Publication, e.cfg.Replication, e.cfg.Options)})
}

// firstShape describes the source's schema as the slot's snapshot sees it.
func (e *Engine) firstShape(ctx context.Context, snap *view, cat *catalog.Catalogue, follow bool) (shapeDoc, error) {
	doc := shapeDoc{Catalogue: cat}
	if !follow {
		return doc, nil
	}
	c, err := e.src.reader(ctx, snap.name, "setup")
	if err != nil {
		return doc, err
	}
	defer closeSoon(c)
	doc.Shape, err = ddl.Describe(ctx, c, cat)
	return doc, err
}

// seed gives a shard the schema that its first position belongs to.
func (d shapeDoc) seed(ctx context.Context, c *pgx.Conn, replication string) error {
	cat, err := json.Marshal(d.Catalogue)
	if err != nil {
		return err
	}
	doc, err := json.Marshal(d)
	if err != nil {
		return err
	}
	_, err = c.Exec(ctx, `INSERT INTO rehome.shape (replication, at_slot, doc) VALUES ($1, $2, $3)
		ON CONFLICT (replication) DO UPDATE SET at_slot = excluded.at_slot, doc = excluded.doc, asked = NULL`, replication, cat, doc)
	if err != nil {
		return fmt.Errorf("record the source's schema: %w", err)
	}
	return nil
}

// loadShape begins with the schema of the slowest shard, and takes note of what was copied.
func (e *Engine) loadShape(ctx context.Context, s *stream) error {
	if e.cfg.back != nil {
		return e.loadShard(ctx)
	}
	slowest := s.lanes[0]
	var sh shapes
	for i, l := range s.lanes {
		if l.pos.lsn < slowest.pos.lsn {
			slowest = l
		}
		var asked tenant.LSN
		err := l.conn.QueryRow(ctx, `SELECT coalesce(asked, '0/0')::text FROM rehome.shape WHERE replication = $1`, e.cfg.Replication).Scan(&asked)
		if errors.Is(err, pgx.ErrNoRows) {
			err = shapeDoc{Catalogue: e.origin.Catalogue}.seed(ctx, l.conn, e.cfg.Replication)
		}
		if err != nil {
			return fmt.Errorf("shard %s: read the source's schema: %w", l.shard.Name, err)
		}
		if i == 0 || asked < sh.asked {
			sh.asked = asked
		}
	}
	var slot, doc []byte
	err := slowest.conn.QueryRow(ctx, `SELECT at_slot, doc FROM rehome.shape WHERE replication = $1`, e.cfg.Replication).Scan(&slot, &doc)
	if err == nil {
		err = errors.Join(json.Unmarshal(slot, &sh.slot), json.Unmarshal(doc, &sh.doc))
	}
	if err != nil {
		return fmt.Errorf("shard %s: read the source's schema: %w", slowest.shard.Name, err)
	}
	e.mu.Lock()
	e.shape, e.cat = sh, sh.slot
	e.mu.Unlock()
	e.stats.reset(sh.slot)
	if err := e.noteCopied(ctx); err != nil {
		return err
	}
	e.setShape(sh.doc)
	if sh.doc.Shape != nil {
		e.tidyDDL(ctx)
	}
	return nil
}

// tidyDDL removes rows of rehome.ddl that the stream has carried long ago. It may fail: the next stream tries again.
func (e *Engine) tidyDDL(ctx context.Context) {
	c, err := e.src.conn(ctx, "setup")
	if err == nil {
		_, err = c.Exec(ctx, `DELETE FROM rehome.ddl WHERE at < now() - interval '1 day'`)
		closeSoon(c)
	}
	if err != nil {
		e.log.Warn("remove old records of schema changes", "error", err)
	}
}

// setShape replaces the schema that is known. Catalogues are immutable: whoever has the former one keeps it.
func (e *Engine) setShape(doc shapeDoc) {
	e.mu.Lock()
	e.shape.doc, e.cat = doc, doc.Catalogue
	e.mu.Unlock()
	e.stats.follow(doc.Catalogue)
}

// reshape takes over the columns of a table that a person gave to all shards.
func (e *Engine) reshape(t *catalog.Table) {
	cat := *e.cat
	cat.Tables = slices.Clone(cat.Tables)
	for i := range cat.Tables {
		if cat.Tables[i].OID == t.OID {
			cat.Tables[i] = *t
		}
	}
	doc := e.shape.doc
	doc.Catalogue = &cat
	e.setShape(doc)
	e.shape.renewed = true
}

// saveCatalogue records what is replicated now, for the cutover and for showing.
func (e *Engine) saveCatalogue(ctx context.Context) error {
	e.mu.Lock()
	origin := *e.origin
	origin.Catalogue = e.cat
	e.mu.Unlock()
	return e.cfg.Journal.SaveOrigin(ctx, origin)
}

// isNew reports whether a table came up after the slot was made.
func (e *Engine) isNew(oid uint32) bool { return e.shape.slot.Table(oid) == nil }

func (e *Engine) declaredReference(t tenant.TableName) bool {
	return catalog.DeclaredReference(e.cfg.Options, t)
}
