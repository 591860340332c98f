package replicator

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/rehomedb/rehome/replicator/catalog"
	"github.com/rehomedb/rehome/replicator/ddl"
	"github.com/rehomedb/rehome/tenant"
)

// installBackSQL makes what the lanes of the way back keep at the source, in the schema rehome that the gate made there.
const installBackSQL = installLaneSQL + `
CREATE TABLE IF NOT EXISTS rehome.back (
	replication       text PRIMARY KEY,
	shard             text NOT NULL,
	system_identifier text NOT NULL,
	timeline          int  NOT NULL,
	schema            text NOT NULL
);` + revokeLaneSQL

// revokeLaneSQL takes back what default privileges may have granted to others: whoever writes rehome.progress first in a
// transaction hides the rest of it from the other direction.
const revokeLaneSQL = `
DO $revoke$
DECLARE
	r record;
BEGIN
	FOR r IN SELECT DISTINCT c.relname, a.grantee FROM pg_catalog.pg_class c, pg_catalog.aclexplode(c.relacl) a
		WHERE c.relnamespace = 'rehome'::regnamespace AND c.relname IN ('applier', 'progress', 'back', 'back_undo') AND c.relkind = 'r' AND a.grantee <> c.relowner
	LOOP
		EXECUTE format('REVOKE ALL ON TABLE rehome.%I FROM %s', r.relname, CASE WHEN r.grantee = 0 THEN 'PUBLIC' ELSE r.grantee::regrole::text END);
	END LOOP;
END $revoke$;`

// installUndoSQL makes the list of what undoes the changes of a shard.
const installUndoSQL = `
CREATE TABLE IF NOT EXISTS rehome.back_undo (
	ordinal     int  PRIMARY KEY,
	object      text NOT NULL,
	description text NOT NULL,
	undo        text NOT NULL
);` + revokeLaneSQL

// made is what is known of a shard when its part of the way back is made.
type made struct {
	at     tenant.LSN // where its slot begins
	id     identity
	schema string
}

// Prepare makes the way back while the shards are still fenced, so that it has every write from the first one on: at each
// shard replica identities where there are none, the publication and the slot, at the source what the lanes keep there.
// It replaces what an earlier attempt left, and may be repeated. ErrFenced if another worker took the replication over;
// a *tenant.Error that names who is in the way if a slot could not be created in time.
func (b *Back) Prepare(ctx context.Context) error {
	return b.exclusive(ctx, func() error {
		b.setState(tenant.WayBackPreparing)
		err := b.prepare(ctx)
		if err != nil {
			b.setState(tenant.WayBackNone)
			return fmt.Errorf("make the way back: %w", err)
		}
		b.setState(tenant.WayBackRunning)
		return nil
	})
}

func (b *Back) prepare(ctx context.Context) error {
	if err := b.owned(ctx); err != nil {
		return err
	}
	if err := b.remove(ctx); err != nil {
		return err
	}
	if err := b.owned(ctx); err != nil {
		return err
	}
	src, err := b.atSource(ctx)
	if err != nil {
		return err
	}
	defer closeSoon(src)
	if err := b.installSource(ctx, src); err != nil {
		return fmt.Errorf("source: %w", err)
	}
	results := make([]made, len(b.side))
	g, gctx := errgroup.WithContext(ctx)
	for i, s := range b.side {
		g.Go(func() error {
			m, err := b.prepareShard(gctx, s)
			if err != nil {
				return fmt.Errorf("shard %s: %w", s.shard.Name, s.translated(err))
			}
			results[i] = m
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return b.seed(ctx, src, results)
}

// owned asks, before something is dropped that a later owner may have made, whether this worker still is it.
func (b *Back) owned(ctx context.Context) error {
	_, err := b.cfg.Journal.Observe(ctx, tenant.Observation{Kind: tenant.SawOwned})
	return err
}

func (b *Back) atSource(ctx context.Context) (*pgx.Conn, error) {
	c, err := connect(ctx, b.cfg.Source, sessionName("rehome-setup-"+b.cfg.Replication), nil)
	if err != nil {
		return nil, fmt.Errorf("source: %w", err)
	}
	return c, nil
}

// installSource makes the tables of the lanes, takes the lanes over, and lets the replication know its own transactions.
func (b *Back) installSource(ctx context.Context, c *pgx.Conn) error {
	err := pgx.BeginFunc(ctx, c, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock(hashtextextended('rehome install', 0))`); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, installBackSQL)
		return err
	})
	if err != nil {
		return fmt.Errorf("install what the way back keeps: %w", err)
	}
	for _, s := range b.side {
		if _, err := takeLane(ctx, c, s.key, b.cfg.Epoch); err != nil {
			return err
		}
	}
	var there bool
	if err := c.QueryRow(ctx, progressPublished, b.cfg.Publication).Scan(&there); err != nil {
		return fmt.Errorf("look at the publication: %w", err)
	}
	if !there {
		if _, err := c.Exec(ctx, "ALTER PUBLICATION "+tenant.QuoteIdent(b.cfg.Publication)+" ADD TABLE rehome.progress"); err != nil {
			return fmt.Errorf("publish what leads the way back's transactions: %w", err)
		}
	}
	probe, err := connect(ctx, b.cfg.Source, sessionName("rehome-setup-"+b.cfg.Replication), nil)
	if err != nil {
		return err
	}
	defer closeSoon(probe)
	return asReplica(ctx, probe, b.cfg.Publication)
}

const progressPublished = `SELECT EXISTS (SELECT FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid
	WHERE p.pubname = $1 AND r.prrelid = to_regclass('rehome.progress'))`

// prepareShard makes a shard's part.
func (b *Back) prepareShard(ctx context.Context, s *backSide) (m made, err error) {
	e := s.engine
	c, err := e.src.conn(ctx, "setup")
	if err != nil {
		return m, err
	}
	defer closeSoon(c)
	if err := b.cfg.Gate.InstallBack(ctx, c); err != nil {
		return m, err
	}
	if _, err := c.Exec(ctx, installUndoSQL); err != nil {
		return m, fmt.Errorf("install the list of changes: %w", err)
	}
	cat, err := catalog.Describe(ctx, c, b.cfg.Options)
	if err != nil {
		return m, err
	}
	if m.id, err = e.src.identify(ctx); err != nil {
		return m, err
	}
	// One lane: an identity that says which row it is is enough.
	changes, _ := catalog.PlanIdentityFor(cat, b.cfg.Options, 1)
	changes = append(changes, catalog.PlanTruncations(cat, b.cfg.Replication)...)
	ordinal := 0
	err = catalog.ApplyChanges(ctx, c, changes, func(ch tenant.SourceChange) error {
		ordinal++
		_, err := c.Exec(ctx, `INSERT INTO rehome.back_undo (ordinal, object, description, undo) VALUES ($1, $2, $3, $4)`, ordinal, ch.Object, ch.Description, ch.Undo)
		return err
	})
	if err != nil {
		return m, err
	}
	if len(changes) > 0 {
		if cat, err = catalog.Describe(ctx, c, b.cfg.Options); err != nil {
			return m, err
		}
	}
	if err := b.owned(ctx); err != nil {
		return m, err
	}
	if err := e.src.publish(ctx, cat, `rehome.progress`, `rehome.marker`, `rehome.heartbeat`, `rehome.truncated`); err != nil {
		return m, err
	}
	if err := b.owned(ctx); err != nil {
		return m, err
	}
	snap, err := e.src.createSlot(ctx, cat.Server.Version >= 170000)
	if err != nil {
		return m, err
	}
	m.at = snap.lsn
	snap.close()
	may, err := ddl.Permitted(ctx, c)
	if err != nil {
		return m, err
	}
	if may {
		if _, err := c.Exec(ctx, refuseDDL); err != nil {
			return m, fmt.Errorf("refuse changes of the schema: %w", err)
		}
	}
	m.schema, err = schemaDigest(ctx, c)
	return m, err
}

// seed sets the lanes' first positions. What it writes makes the way back exist.
func (b *Back) seed(ctx context.Context, src *pgx.Conn, results []made) error {
	err := pgx.BeginFunc(ctx, src, func(tx pgx.Tx) error {
		for i, s := range b.side {
			var owned int
			err := tx.QueryRow(ctx, `SELECT 1 FROM rehome.applier WHERE replication = $1 AND epoch = $2 FOR UPDATE`, s.key, b.cfg.Epoch).Scan(&owned)
			if errors.Is(err, pgx.ErrNoRows) {
				return ErrFenced
			}
			if err != nil {
				return err
			}
			m := results[i]
			for _, q := range []struct {
				sql  string
				args []any
			}{
				{`DELETE FROM rehome.progress WHERE replication = $1`, []any{s.key}},
				{`INSERT INTO rehome.progress (replication, seq, epoch, lsn) VALUES ($1, 1, $2, $3::pg_lsn)`, []any{s.key, b.cfg.Epoch, m.at.String()}},
				{
					`INSERT INTO rehome.back (replication, shard, system_identifier, timeline, schema) VALUES ($1, $2, $3, $4, $5)`,
					[]any{s.key, s.shard.Name, m.id.SystemIdentifier, m.id.Timeline, m.schema},
				},
			} {
				if _, err := tx.Exec(ctx, q.sql, q.args...); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("source: set the first positions of the way back: %w", err)
	}
	for i, s := range b.side {
		s.know(results[i])
		s.forget()
	}
	return nil
}

// forget lets what an earlier way back met be news again.
func (s *backSide) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.told, s.strays = "", nil
}

func (s *backSide) know(m made) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.origin, s.schema = m.id, m.schema
}

// load reads whether there is a way back, and from which servers.
func (b *Back) load(ctx context.Context) (there bool, err error) {
	c, err := b.atSource(ctx)
	if err != nil {
		return false, err
	}
	defer closeSoon(c)
	if err := c.QueryRow(ctx, `SELECT to_regclass('rehome.back') IS NOT NULL`).Scan(&there); err != nil || !there {
		return false, err
	}
	found := 0
	for _, s := range b.side {
		var m made
		err := c.QueryRow(ctx, `SELECT system_identifier, timeline, schema FROM rehome.back WHERE replication = $1`, s.key).Scan(&m.id.SystemIdentifier, &m.id.Timeline, &m.schema)
		if errors.Is(err, pgx.ErrNoRows) {
			continue
		}
		if err != nil {
			return false, fmt.Errorf("source: read what is known of the way back: %w", err)
		}
		s.know(m)
		found++
	}
	return found == len(b.side), nil
}

// Discard drops the way back on both sides, slots first. It may be repeated; what cannot be reached is an error, and the
// rest is dropped all the same. ErrFenced if another worker took the replication over.
func (b *Back) Discard(ctx context.Context) error {
	return b.exclusive(ctx, func() error {
		if err := b.owned(ctx); err != nil {
			return err
		}
		if err := b.remove(ctx); err != nil {
			return fmt.Errorf("drop the way back: %w", err)
		}
		b.setState(tenant.WayBackNone)
		return nil
	})
}

func (b *Back) remove(ctx context.Context) error {
	src, err := b.atSource(ctx)
	if err != nil {
		return err
	}
	defer closeSoon(src)
	keys := make([]string, 0, len(b.side))
	for _, s := range b.side {
		keys = append(keys, s.key)
	}
	var there, lanes bool
	if err := src.QueryRow(ctx, `SELECT to_regclass('rehome.back') IS NOT NULL, to_regclass('rehome.applier') IS NOT NULL`).Scan(&there, &lanes); err != nil {
		return fmt.Errorf("source: %w", err)
	}
	if there {
		for _, key := range keys {
			var epoch int64
			err := src.QueryRow(ctx, `SELECT coalesce(max(epoch), 0) FROM rehome.applier WHERE replication = $1`, key).Scan(&epoch)
			if err != nil {
				return fmt.Errorf("source: %w", err)
			}
			if epoch > b.cfg.Epoch {
				return ErrFenced
			}
		}
		if _, err := src.Exec(ctx, `DELETE FROM rehome.back WHERE replication = ANY ($1)`, keys); err != nil {
			return fmt.Errorf("source: %w", err)
		}
	}
	errs := make([]error, len(b.side))
	var g errgroup.Group
	for i, s := range b.side {
		g.Go(func() error {
			if err := b.removeShard(ctx, s); err != nil {
				if errors.Is(err, ErrFenced) {
					return err
				}
				errs[i] = fmt.Errorf("shard %s: %w", s.shard.Name, s.translated(err))
			}
			return nil
		})
	}
	if err := errors.Join(g.Wait(), errors.Join(errs...)); err != nil {
		return err
	}
	if !lanes {
		return nil
	}
	if err := b.removeSource(ctx, src, keys); err != nil {
		return fmt.Errorf("source: %w", err)
	}
	return nil
}

// removeShard drops a shard's part, the slot first: it holds WAL back.
func (b *Back) removeShard(ctx context.Context, s *backSide) error {
	// Asked for each: another worker may have taken over, and made its own, while the source or a shard was slow.
	if err := b.owned(ctx); err != nil {
		return err
	}
	e := s.engine
	if err := e.src.cleanUp(ctx); err != nil {
		return err
	}
	c, err := e.src.conn(ctx, "setup")
	if err != nil {
		return err
	}
	defer closeSoon(c)
	if _, err := c.Exec(ctx, allowDDL); err != nil {
		return fmt.Errorf("allow changes of the schema again: %w", err)
	}
	var undo bool
	if err := c.QueryRow(ctx, `SELECT to_regclass('rehome.back_undo') IS NOT NULL`).Scan(&undo); err != nil {
		return err
	}
	if undo {
		rows, err := c.Query(ctx, `SELECT ordinal, object, description, undo FROM rehome.back_undo`)
		if err != nil {
			return err
		}
		changes, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (ch tenant.SourceChange, err error) {
			err = row.Scan(&ch.Ordinal, &ch.Object, &ch.Description, &ch.Undo)
			return ch, err
		})
		if err != nil {
			return err
		}
		if err := catalog.UndoChanges(ctx, c, changes); err != nil {
			return err
		}
		if _, err := c.Exec(ctx, `DROP TABLE rehome.back_undo`); err != nil {
			return err
		}
	}
	return b.cfg.Gate.RemoveBack(ctx, c)
}

// removeSource drops what the lanes kept at the source. Another replication's way back may use the same tables.
func (b *Back) removeSource(ctx context.Context, src *pgx.Conn, keys []string) error {
	var there bool
	if err := src.QueryRow(ctx, progressPublished, b.cfg.Publication).Scan(&there); err != nil {
		return err
	}
	if there {
		if _, err := src.Exec(ctx, "ALTER PUBLICATION "+tenant.QuoteIdent(b.cfg.Publication)+" DROP TABLE rehome.progress"); err != nil {
			return err
		}
	}
	return pgx.BeginFunc(ctx, src, func(tx pgx.Tx) error {
		for _, sql := range []string{`DELETE FROM rehome.progress WHERE replication = ANY ($1)`, `DELETE FROM rehome.applier WHERE replication = ANY ($1)`} {
			if _, err := tx.Exec(ctx, sql, keys); err != nil {
				return err
			}
		}
		var others, back bool
		if err := tx.QueryRow(ctx, `SELECT EXISTS (SELECT FROM rehome.applier), to_regclass('rehome.back') IS NOT NULL`).Scan(&others, &back); err != nil {
			return err
		}
		if back {
			if err := tx.QueryRow(ctx, `SELECT EXISTS (SELECT FROM rehome.back)`).Scan(&back); err != nil {
				return err
			}
			if !back {
				if _, err := tx.Exec(ctx, `DROP TABLE rehome.back`); err != nil {
					return err
				}
			}
		}
		if others {
			return nil
		}
		_, err := tx.Exec(ctx, `DROP FUNCTION IF EXISTS rehome.advance; DROP TABLE rehome.progress, rehome.applier`)
		return err
	})
}

// translated lets an error of the engine speak of the ends as they are.
func (s *backSide) translated(err error) error {
	te, ok := errors.AsType[*tenant.Error](err)
	if !ok || te == ErrFenced {
		return err
	}
	out := *te
	out.Message, out.Hint = s.words(te.Message), strings.ReplaceAll(s.words(te.Hint), "then: rehome resume-replication", "then try again")
	return &out
}
