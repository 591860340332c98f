package replicator

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/rehomedb/rehome/replicator/ddl"
	"github.com/rehomedb/rehome/replicator/pgoutput"
	"github.com/rehomedb/rehome/tenant"
)

// schemaStep is what one command at the source means for a shard, or, with doc, the state that a transaction leaves.
type schemaStep struct {
	tag string
	sql []string
	doc []byte
}

// ddlState is what the transaction that is being read did to the schema.
type ddlState struct {
	dirty     bool
	rewritten map[uint32]int // tables that the next command's row is about -> reasons
	fresh     []uint32       // to be looked at when the transaction ends
	applied   []map[string]any
}

// ddlRow takes a row of rehome.ddl: what a command left is compared with what is known, and the statements that follow go
// to every lane in their place.
func (s *stream) ddlRow(ctx context.Context, rel *relation, row pgoutput.Tuple) error {
	field := func(name string) string {
		for i, c := range rel.columns {
			if c.Name == name && i < len(row) && row[i].Kind == pgoutput.Text {
				return string(row[i].Data)
			}
		}
		return ""
	}
	tag, query, state := field("tag"), field("query"), []byte(field("state"))
	switch field("kind") {
	case "rewrite":
		var r struct {
			OID    uint32 `json:"oid"`
			Reason int    `json:"reason"`
		}
		if err := json.Unmarshal(state, &r); err != nil {
			return fmt.Errorf("stream: a row of rehome.ddl: %w", err)
		}
		if s.ddl.rewritten == nil {
			s.ddl.rewritten = map[uint32]int{}
		}
		s.ddl.rewritten[r.OID] |= r.Reason
		return nil
	case "unnoted":
		return s.unnoted(state, query)
	case "unknown":
		var r struct {
			Error string `json:"error"`
		}
		_ = json.Unmarshal(state, &r) // what went wrong is for showing
		return s.ask(stop("ddl-unknown", "bring the shards to the source's schema, then: rehome resume-replication",
			"what %s did at the source could not be recorded there: %s. The command: %s", tag, r.Error, query))
	}
	shape := s.e.shape.doc.Shape
	if shape == nil {
		return nil // it was not known when the slot was made: the tables' descriptions tell
	}
	var r ddl.Row
	if err := json.Unmarshal(state, &r); err != nil {
		return fmt.Errorf("stream: a row of rehome.ddl: %w", err)
	}
	ch := ddl.Apply(shape, s.e.shape.doc.Catalogue, &r, s.ddl.rewritten, ddl.Options{
		Replication: s.e.cfg.Options, Shards: len(s.lanes), Publication: s.e.cfg.Publication, Settings: textSettings, Fence: s.e.cfg.Gate.FenceTable,
	})
	if s.watching {
		if len(ch.SQL) > 0 {
			s.foreign = "the schema (" + tag + ")"
		}
		return nil
	}
	if len(ch.Problems) > 0 {
		p := ch.Problems[0]
		if err := s.ask(stop("ddl-by-hand", p.Remedy, "%s. The command at the source: %s", p.Message, query)); err != nil {
			return err
		}
	}
	if len(r.Tables) > 0 {
		s.ddl.rewritten = nil
	}
	if len(ch.SQL) == 0 && len(ch.Notes) == 0 && !ch.Renewed {
		return nil
	}
	s.ddl.applied = append(s.ddl.applied, map[string]any{"command": tag, "source": query, "statements": ch.SQL, "notes": ch.Notes})
	if !ch.Renewed {
		return nil
	}
	s.e.setShape(shapeDoc{Catalogue: ch.Catalogue, Shape: ch.Shape})
	s.renameTypes(ch.Catalogue)
	s.ddl.dirty = true
	s.ddl.fresh = append(s.ddl.fresh, ch.New...)
	if len(ch.SQL) == 0 {
		return nil
	}
	return s.toAll(ctx, &schemaStep{tag: tag, sql: ch.SQL})
}

func (s *stream) toAll(ctx context.Context, step *schemaStep) error {
	for i := range s.lanes {
		if err := s.add(ctx, i, change{op: opDDL, ddl: step}); err != nil {
			return err
		}
	}
	return nil
}

// ask pauses the replication before the transaction that is being read, unless a person resumed it here already, or every
// shard has the transaction.
func (s *stream) ask(err *tenant.Error) error {
	if s.watching || s.commit <= s.e.shape.asked {
		return nil
	}
	for _, skip := range s.skip {
		if !skip {
			s.e.shape.stopped = s.commit
			return err
		}
	}
	return nil
}

// endDDL ends a transaction that changed the schema: tables that came up must be ones whose rows can be routed, and each
// shard keeps the state that the transaction leaves, together with the position behind it.
func (s *stream) endDDL(ctx context.Context) error {
	dirty := s.ddl.dirty || s.e.shape.renewed
	if !dirty && len(s.ddl.applied) == 0 {
		return nil
	}
	for _, oid := range s.ddl.fresh {
		if err := s.checkNew(ctx, oid); err != nil {
			return err
		}
	}
	behind := false
	for _, skip := range s.skip {
		behind = behind || !skip
	}
	if !behind {
		s.e.shape.renewed = false
		return nil
	}
	if dirty && !s.watching {
		raw, err := json.Marshal(s.e.shape.doc)
		if err != nil {
			return fmt.Errorf("stream: %w", err)
		}
		if err := s.toAll(ctx, &schemaStep{doc: raw}); err != nil {
			return err
		}
		if err := s.e.saveCatalogue(ctx); err != nil {
			return err
		}
		s.e.shape.renewed = false
	}
	for _, a := range s.ddl.applied {
		s.e.cfg.Journal.Note(ctx, "ddl", a)
	}
	return nil
}

// checkNew pauses for a table whose rows could not be carried, before its first row, unless the source has dropped it
// since.
func (s *stream) checkNew(ctx context.Context, oid uint32) error {
	shape := s.e.shape.doc.Shape
	t, cat := shape.Tables[oid], s.e.shape.doc.Catalogue.Table(oid)
	if t == nil || cat == nil || s.watching {
		return nil
	}
	published := false
	for _, p := range t.Published {
		published = published || p == s.e.cfg.Publication
	}
	var err *tenant.Error
	mended := func(now tableNow) bool { return now.published }
	switch {
	case !published && cat.Identity.None():
		err = stop("table-without-identity", "give it a primary key at the source (ALTER TABLE … ADD PRIMARY KEY), or drop it there; then: rehome resume-replication",
			"table %s was made at the source without a primary key: its rows cannot be replicated", cat.Name)
	case !published:
		err = stop("table-not-published", "at the source, as the table's owner: ALTER PUBLICATION "+tenant.QuoteIdent(s.e.cfg.Publication)+" ADD TABLE "+cat.Name.Quoted()+"; then: rehome resume-replication, and rehome verify --repair for rows of before",
			"table %s was made at the source and could not be published: %s", cat.Name, t.Failed)
	case len(s.lanes) > 1 && !cat.Sharded() && s.e.isNew(oid) && !s.e.declaredReference(cat.Name):
		// What it becomes cannot be changed under its rows: only a table that is gone is mended.
		mended = func(tableNow) bool { return false }
		err = stop("table-without-realm", "drop it at the source and make it with the realm key, or start the replication again with --reference; then: rehome resume-replication",
			"table %s was made at the source without the realm key: its rows cannot be routed", cat.Name)
	case len(s.lanes) > 1 && cat.Sharded() && !cat.RealmFixed && !cat.Identity.Has(cat.RealmKey):
		mended = func(now tableNow) bool { return slices.Contains(now.identity, cat.Column(cat.RealmKey).Num) }
		err = stop("identity-without-realm", "make the realm key part of its primary key at the source, or drop it there; then: rehome resume-replication",
			"the replica identity of table %s does not contain its realm key %s: its rows cannot be routed", cat.Name, cat.RealmKey)
	default:
		return nil
	}
	now, lerr := s.lookUp(ctx, oid)
	switch {
	case lerr != nil || !now.there:
		return lerr
	case s.commit > s.e.shape.asked:
		return s.ask(err)
	case mended(now) || !slices.Contains(s.skip, false):
		return nil
	}
	s.e.shape.stopped = s.commit // resumed without having been mended
	return err
}

// tableNow is what the source has of a table by now, which may be later than what is being read.
type tableNow struct {
	there, published bool
	identity         []int16 // attnum of the columns of its replica identity
}

// unseen reports whether others at the source do not see yet the transaction that is being read. A walsender sends it once its
// commit is on disk, which is before that: by a moment, or, where commits wait for a synchronous standby, by as long as that takes.
// A transaction holds the lock of its own number until it can be seen (CommitTransaction of xact.c).
func (s *stream) unseen(ctx context.Context, c *pgx.Conn) (commits bool, err error) {
	err = c.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'transactionid' AND granted AND transactionid = $1::text::xid)`,
		strconv.FormatUint(uint64(s.xid), 10)).Scan(&commits)
	return commits, err
}

// lookUp asks the source what has become of a table that the transaction being read has made or changed. While nobody else sees
// that transaction nobody can have dropped or mended its table: it is not waited for, since the standby that the commit waits
// for may be this very stream, which says what it has only when the transaction is applied.
func (s *stream) lookUp(ctx context.Context, oid uint32) (now tableNow, err error) {
	c, err := s.e.src.conn(ctx, "watch")
	if err != nil {
		return now, err
	}
	defer closeSoon(c)
	if commits, err := s.unseen(ctx, c); err != nil || commits {
		return tableNow{there: commits}, err
	}
	err = c.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_class WHERE oid = $1), EXISTS (SELECT FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid
			WHERE r.prrelid = $1 AND p.pubname = $2),
		ARRAY(SELECT a.attnum FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
			WHERE c.oid = $1 AND (c.relreplident = 'f' OR EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisvalid AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1])
				AND (c.relreplident = 'd' AND i.indisprimary OR c.relreplident = 'i' AND i.indisreplident))))`, oid, s.e.cfg.Publication).Scan(&now.there, &now.published, &now.identity)
	return now, err
}

// schema sends the statements of a change of the schema, each by itself: the protocol takes one statement at a time,
// whatever a definition contains.
func (r *pipelineRun) schema(c *change) error {
	for _, sql := range c.ddl.sql {
		r.p.SendQueryParams(sql, nil, nil, nil, nil)
		r.want = append(r.want, expected{change: c})
	}
	if c.ddl.doc != nil {
		r.p.SendQueryParams(`UPDATE rehome.shape SET doc = $2 WHERE replication = $1`, [][]byte{[]byte(r.l.replication), c.ddl.doc}, nil, nil, nil)
		r.want = append(r.want, expected{change: c})
	}
	return r.results()
}

// ddlFailed is a statement that a shard refuses. Nothing of its transaction is applied there.
func ddlFailed(shard string, step *schemaStep, pe *pgconn.PgError) error {
	detail := pe.Message
	if pe.Detail != "" {
		detail += " (" + pe.Detail + ")"
	}
	return stop("ddl-failed", "mend the cause at the shard, or run these statements there by hand; then: rehome resume-replication",
		"shard %s refused a change of the schema (%s): %s (SQLSTATE %s). The statements: %s", shard, step.tag, detail, pe.Code, strings.Join(step.sql, "; "))
}

// asking are the codes of pauses that a person's resume answers.
func asking(err error) bool {
	te, ok := errors.AsType[*tenant.Error](err)
	return ok && (strings.HasPrefix(te.Code, "ddl-") || strings.HasPrefix(te.Code, "table-") || te.Code == "identity-without-realm")
}

// drain holds a pause back until every lane has applied what comes before it: rows of the old shape must not meet a shard
// that a person has given the new one.
func (s *stream) drain(ctx context.Context, err error) error {
	if te, ok := errors.AsType[*tenant.Error](err); !ok || (!asking(err) && te.Code != "schema-changed") {
		return err
	}
	for _, l := range s.lanes {
		for l.position().LSN < l.in.lastGiven() {
			if werr := wait(ctx, flushPoll); werr != nil {
				return werr // a lane failed: the pause comes when all is read again
			}
		}
	}
	return err
}

// noteAsked remembers at the shards that the replication was paused before a transaction, after the pause was recorded: a
// server that dies in between asks again.
func (e *Engine) noteAsked(ctx context.Context, err error) {
	at := e.shape.stopped
	if at == 0 || !asking(err) {
		return
	}
	// Also when the worker is stopped just now: who sees the pause may resume at once.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), connectTimeout)
	defer cancel()
	for _, sh := range e.cfg.Shards {
		c, err := e.shardSession(ctx, sh, "setup")
		if err == nil {
			_, err = c.Exec(ctx, `UPDATE rehome.shape SET asked = greatest(asked, $2::pg_lsn) WHERE replication = $1`, e.cfg.Replication, at.String())
			closeSoon(c)
		}
		if err != nil {
			e.log.Warn("remember a pause at a shard; it will be asked for again", "shard", sh.Name, "error", err)
		}
	}
}
