package replicator

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/replicator/ddl"
	"github.com/rehomedb/rehome/replicator/schema"
	"github.com/rehomedb/rehome/tenant"
)

// After an interrupted copy the shards' rows are of several positions until the stream has passed the largest watermark.
// Foreign keys, and unique indexes of tables that are of several positions in themselves, are built only then: the stream
// ends, they are built at shards that stand still, and the stream goes on. Before that a replication is not in sync.

// errBuildLater ends the stream because every shard has passed the largest watermark.
var errBuildLater = errors.New("what waited for the stream can be built")

// held says what must not be built behind the copy: nil when all of it is of one position, which is the slot's. At a later
// one the source's schema may be another than the shards' are yet.
func (e *Engine) held(ctx context.Context) (*schema.Hold, error) {
	least, greatest := e.watermarks()
	e.mu.Lock()
	slot := e.origin.StartLSN
	e.mu.Unlock()
	if least == greatest && (least == 0 || least == slot) {
		return nil, nil
	}
	h := &schema.Hold{Tables: map[tenant.TableName]string{}}
	atSlot, err := e.shapeAt(ctx, e.cfg.Shards[0]) // nothing has been streamed yet
	if err != nil {
		return nil, err
	}
	if atSlot != nil {
		h.Objects = atSlot.Objects()
	}
	for i := range e.cat.Tables {
		t := &e.cat.Tables[i]
		c, _ := e.copyOf(t)
		if c.marks == nil {
			continue
		}
		h.Tables[t.Name] = c.marks.key
		for _, l := range t.Leaves {
			h.Tables[l.Name] = c.marks.key
		}
		for _, b := range t.Branches {
			h.Tables[b.Name] = c.marks.key
		}
	}
	return h, nil
}

// shapeAt is the source's schema at a shard's position; nil: its changes are not followed.
func (e *Engine) shapeAt(ctx context.Context, sh Shard) (*ddl.Shape, error) {
	c, err := e.shardSession(ctx, sh, "setup")
	if err != nil {
		return nil, err
	}
	defer closeSoon(c)
	var raw []byte
	var doc shapeDoc
	err = c.QueryRow(ctx, `SELECT doc FROM rehome.shape WHERE replication = $1`, e.cfg.Replication).Scan(&raw)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	if err == nil {
		err = json.Unmarshal(raw, &doc)
	}
	if err != nil {
		return nil, fmt.Errorf("shard %s: read the source's schema: %w", sh.Name, err)
	}
	return doc.Shape, nil
}

// buildLater builds what waits, if every shard has all that was committed before the largest watermark; else it takes note
// of the position to wait for. The lanes are open and stand still.
func (e *Engine) buildLater(ctx context.Context, lanes []*lane) error {
	if e.cfg.back != nil {
		return nil // nothing was copied
	}
	waiting := 0
	for _, l := range lanes {
		n, err := schema.Later(ctx, l.conn, e.cfg.Replication)
		if err != nil {
			return fmt.Errorf("shard %s: read what waits for the stream: %w", l.shard.Name, err)
		}
		waiting += n
	}
	_, greatest := e.watermarks()
	wait := tenant.LSN(0)
	if waiting > 0 {
		for _, l := range lanes {
			if l.pos.lsn < greatest {
				wait = greatest
			}
		}
	}
	e.mu.Lock()
	e.later = wait
	e.mu.Unlock()
	if waiting == 0 || wait > 0 {
		return nil
	}
	e.announce(ctx, "building the foreign keys and unique indexes that waited for the stream")
	err := e.parallel(ctx, func(ctx context.Context, sh Shard) error {
		now, err := e.shapeAt(ctx, sh)
		if err != nil {
			return err
		}
		err = schema.RestoreLater(ctx, sh.DSN, e.cfg.Replication, now, e.log, func(n, total int, item string) {
			e.stats.setStep(fmt.Sprintf("building what waited for the stream on %s: %d of %d (%s)", sh.Name, n, total, item))
		})
		if err != nil {
			return err
		}
		c, err := e.shardSession(ctx, sh, "setup")
		if err != nil {
			return err
		}
		defer closeSoon(c)
		return e.cfg.Gate.FenceShard(ctx, c)
	})
	if err != nil {
		return fmt.Errorf("build what waited for the stream: %w", err)
	}
	return nil
}

// waitsForStream reports whether something is still to be built.
func (e *Engine) waitsForStream() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.later > 0
}

// canBuildLater reports whether every lane has committed all that came before the largest watermark.
func (e *Engine) canBuildLater(s *stream) bool {
	e.mu.Lock()
	at := e.later
	e.mu.Unlock()
	if at == 0 {
		return false
	}
	for _, l := range s.lanes {
		if l.position().LSN < at {
			return false
		}
	}
	return true
}
