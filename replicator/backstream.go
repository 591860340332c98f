package replicator

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/rehomedb/rehome/replicator/catalog"
	"github.com/rehomedb/rehome/tenant"
)

// checkShard makes sure that the shard is the server that the way back was made at, and that its slot can still serve.
func (e *Engine) checkShard(ctx context.Context) error {
	s := e.cfg.back
	const again = "cancel the replication and start it again" // which backRemedy replaces
	id, err := e.src.identify(ctx)
	if err != nil {
		return err
	}
	s.mu.Lock()
	was := s.origin
	s.mu.Unlock()
	if id.SystemIdentifier != was.SystemIdentifier {
		return stop("other-source", again, "the source is another server now (system identifier %s, it was %s)", id.SystemIdentifier, was.SystemIdentifier)
	}
	if id.Timeline != was.Timeline {
		return stop("other-timeline", again, "the source is on timeline %d now, it was on %d: it was restored or failed over", id.Timeline, was.Timeline)
	}
	return e.takeSlot(ctx)
}

// loadShard describes the shard as it is now. It cannot change while the way back is open: see Prepare.
func (e *Engine) loadShard(ctx context.Context) error {
	c, err := e.src.conn(ctx, "setup")
	if err != nil {
		return err
	}
	defer closeSoon(c)
	cat, err := catalog.Describe(ctx, c, e.cfg.Options)
	if err != nil {
		return fmt.Errorf("shard %s: %w", e.cfg.back.shard.Name, err)
	}
	e.mu.Lock()
	e.shape, e.cat = shapes{slot: cat, doc: shapeDoc{Catalogue: cat}}, cat
	e.mu.Unlock()
	e.stats.reset(cat)
	e.cfg.back.streams()
	return nil
}

// streams forgets what was in the way.
func (s *backSide) streams() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.problem = problem{}
}

func backReshaped(t tenant.TableName) error {
	return stop("schema-changed", "take the change back at the shards", "table %s changed its shape since the way back was made: its rows cannot be carried", t)
}

// PublishedTables begins a statement with the tables of a publication, $1, and all their partitions: published (oid, nspname,
// relname). Without a publication it is all tables of users.
const PublishedTables = `WITH published AS (
	SELECT c.oid, n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
	WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't' AND n.nspname NOT LIKE 'pg\_%' AND n.nspname NOT IN ('information_schema', 'rehome', 'rehome_control')
	  AND ($1 = '' OR EXISTS (SELECT FROM pg_publication p JOIN pg_publication_rel r ON r.prpubid = p.oid CROSS JOIN LATERAL
		(SELECT r.prrelid::oid AS oid UNION SELECT relid::oid FROM pg_partition_tree(r.prrelid)) t WHERE p.pubname = $1 AND t.oid = c.oid)))
`

// needsReplica is whether writes at the source fire what must not fire: foreign keys, triggers and rules of users. What
// checks a deferrable key again is no such, and Rehome's own are not either.
const needsReplica = PublishedTables + `
SELECT EXISTS (SELECT FROM published c JOIN pg_trigger t ON t.tgrelid = c.oid JOIN pg_proc p ON p.oid = t.tgfoid JOIN pg_namespace n ON n.oid = p.pronamespace
		WHERE t.tgenabled IN ('O', 'A') AND n.nspname <> 'rehome' AND NOT (t.tgisinternal AND p.proname = 'unique_key_recheck'))
	OR EXISTS (SELECT FROM published c JOIN pg_rewrite r ON r.ev_class = c.oid WHERE r.ev_enabled IN ('O', 'A'))`

// NeedsReplicaRole reports whether what is published from a source has foreign keys, triggers or rules that would fire for
// rows that are carried back to it, unless the session is in the replica role (session_replication_role).
func NeedsReplicaRole(ctx context.Context, source *pgx.Conn, publication string) (needed bool, err error) {
	if err := source.QueryRow(ctx, needsReplica, publication).Scan(&needed); err != nil {
		return false, fmt.Errorf("look for triggers: %w", err)
	}
	return needed, nil
}

// published is the publication of the replication that the way back belongs to.
func (s *backSide) published() string {
	return strings.TrimSuffix(s.engine.cfg.Publication, backPublicationEnd)
}

// asReplica keeps foreign keys and triggers quiet on a session at the source. Where the role may not, there must be none.
func asReplica(ctx context.Context, c *pgx.Conn, publication string) error {
	_, err := c.Exec(ctx, `SET session_replication_role = replica`)
	if pe, ok := errors.AsType[*pgconn.PgError](err); !ok || pe.Code != "42501" {
		return err
	}
	needed, err := NeedsReplicaRole(ctx, c, publication)
	if err != nil {
		return err
	}
	if needed {
		return stop("no-way-back", "GRANT SET ON PARAMETER session_replication_role TO our role there (from version 15 on), or cut over with --no-way-back",
			"the former source has foreign keys or triggers, and our role may not set session_replication_role: writes cannot be carried back to it")
	}
	return nil
}

// elsewhere reports whether a table's rows do not count at this shard: those of a reference table, which are written at
// the home shard. A write to them elsewhere is told of.
func (s *stream) elsewhere(ctx context.Context, t *catalog.Table) bool {
	b := s.e.cfg.back
	if b == nil || !b.several || b.home || t.Sharded() {
		return false
	}
	b.mu.Lock()
	name := t.Name.String()
	news := !slices.Contains(b.strays, name)
	if news {
		b.strays = append(b.strays, name)
	}
	b.mu.Unlock()
	if news {
		s.e.cfg.Journal.Note(ctx, "alarm", map[string]any{"code": "reference-written-elsewhere", "detail": fmt.Sprintf(
			"reference table %s was written at shard %s, at %s: the way back takes its rows from the home shard only, and leaves this and what follows there out", name, b.shard.Name, s.commit)})
	}
	return true
}

// backTruncations makes deletes of a TRUNCATE: of the shard's realms, or, if there is one shard, of all. TRUNCATE itself
// would wait for every reader of the source, let all others wait behind it, and could restart sequences there.
func (s *stream) backTruncations(ctx context.Context, t *truncation) []*truncation {
	var out []*truncation
	for _, rel := range t.rels {
		if s.elsewhere(ctx, rel.table) {
			continue
		}
		out = append(out, &truncation{rels: []*relation{rel}, apart: true, where: s.e.cfg.back.ownedRows(rel.table, rel.target())})
	}
	return out
}

// ownedRows is the condition for the rows of a table, or of a partition of it, at the source whose realms belong to the
// shard; "": all do. A realm's text is hashed once, not for each of its rows.
func (s *backSide) ownedRows(t *catalog.Table, from string) string {
	if !s.several || !t.Sharded() {
		return ""
	}
	realm := tenant.QuoteIdent(t.RealmKey) + `::text COLLATE "C"`
	return realm + " IN (SELECT d.realm FROM (SELECT DISTINCT " + realm + " AS realm FROM " + from + ") d WHERE " + s.owned("d.realm") + ")"
}

// ownedRealms is the condition that a realm's text, an SQL expression, belongs to a shard: tenant.Bucket in SQL.
func ownedRealms(p tenant.Placement, shard, realm string) string {
	hash := "sha256(convert_to(" + realm + ", 'UTF8'))"
	bucket := fmt.Sprintf("((get_byte(%s, 0) * 256 + get_byte(%[1]s, 1)) & %d)", hash, tenant.Buckets-1)
	var ranges, pinned, here []string
	for _, r := range p.Ranges {
		if r.Shard == shard {
			ranges = append(ranges, fmt.Sprintf("%s BETWEEN %d AND %d", bucket, r.From, r.To))
		}
	}
	if ranges == nil {
		ranges = []string{"false"}
	}
	for name, at := range p.Pins {
		pinned = append(pinned, tenant.QuoteLiteral(name))
		if at == shard {
			here = append(here, tenant.QuoteLiteral(name))
		}
	}
	if pinned == nil {
		return "(" + strings.Join(ranges, " OR ") + ")"
	}
	slices.Sort(pinned)
	slices.Sort(here)
	if here == nil {
		here = []string{"NULL"}
	}
	return fmt.Sprintf("CASE WHEN %s IN (%s) THEN %[1]s IN (%s) ELSE (%s) END", realm, strings.Join(pinned, ", "), strings.Join(here, ", "), strings.Join(ranges, " OR "))
}
