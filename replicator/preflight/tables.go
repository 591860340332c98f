package preflight

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/rehomedb/rehome/replicator/catalog"
	"github.com/rehomedb/rehome/tenant"
)

// realmKeyTypes are those whose text is the same in Go and in SQL; buckets are computed from it.
var realmKeyTypes = []uint32{pgtype.UUIDOID, pgtype.Int2OID, pgtype.Int4OID, pgtype.Int8OID, pgtype.TextOID, pgtype.VarcharOID, pgtype.BPCharOID}

// tables checks what the catalogue tells without asking the source again.
func (c *checker) tables() {
	if len(c.cat.Tables) == 0 {
		c.block("nothing-to-replicate", "source", "check the database's name, --include and --exclude", "the source has no table to replicate")
	}
	c.patterns()
	for i := range c.cat.Tables {
		t := &c.cat.Tables[i]
		c.realmKey(t)
		c.identity(t)
		var text []string
		for _, col := range t.Columns {
			if !col.Binary && !col.Generated {
				text = append(text, tenant.QuoteIdent(col.Name)+" "+col.Type)
			}
		}
		if text != nil {
			c.notice("text-format", t.Name.String(), "", "carried as text, because types have no binary form that another server understands: %s", strings.Join(text, ", "))
		}
		if t.Partitioned {
			for _, l := range t.Leaves {
				if l.Unlogged {
					c.blockAcceptable("unlogged-partition", l.Name.String(), fmt.Sprintf("ALTER TABLE %s SET LOGGED", l.Name.Quoted()), "partition %s is unlogged: what changes there after the copy is lost", l.Name)
				}
			}
		}
	}
	if c.in.Options.FixIdentity {
		_, found := catalog.PlanIdentityFor(c.cat, c.in.Options, c.in.Shards)
		c.found = append(c.found, found...)
	}
}

// patterns warns of options that name nothing: a slip of the pen would otherwise decide where rows go.
func (c *checker) patterns() {
	hit := func(pattern string) bool {
		return slices.ContainsFunc(c.cat.Tables, func(t catalog.Table) bool { return catalog.Matches(pattern, t.Name) })
	}
	miss := func(flag, pattern string) {
		if !hit(pattern) {
			c.warn("pattern-matches-nothing", flag+" "+pattern, "check the name: schema.table, with double quotes where a part needs them", "%s %s names no table that is replicated", flag, pattern)
		}
	}
	for _, p := range c.in.Options.Include {
		miss("--include", p)
	}
	for _, p := range c.in.Options.Reference {
		miss("--reference", p)
	}
	for _, p := range c.in.Options.RealmsNeverChange {
		miss("--realms-never-change", p)
	}
	for p := range c.in.Options.TableKeys {
		miss("--table-key", p)
	}
}

func (c *checker) realmKey(t *catalog.Table) {
	name := t.Name.String()
	if !t.Sharded() {
		if catalog.DeclaredReference(c.in.Options, t.Name) {
			return
		}
		want, _ := catalog.WantedRealmKey(c.in.Options, t.Name)
		remedy := fmt.Sprintf("name its column (--table-key %s=COLUMN), copy it whole to every shard (--reference %s), or leave it out (--exclude %s)", shellQuote(name), shellQuote(name), shellQuote(name))
		if c.in.Shards > 1 {
			c.block("realm-key-missing", name, remedy, "%s has no column %s: its rows belong to no realm", name, want)
		} else {
			c.blockAcceptable("realm-key-missing", name, remedy, "%s has no column %s: its rows belong to no realm, and it is treated as a reference table", name, want)
		}
		return
	}
	col := t.Column(t.RealmKey)
	if !slices.Contains(realmKeyTypes, col.BaseOID) {
		c.block("realm-key-type", name, "use a column of type uuid, smallint, integer, bigint, text, varchar or char", "the realm key %s of %s is of type %s", col.Name, name, col.TypeMod)
	}
	if col.Generated {
		c.block("realm-key-type", name, "use a plain column", "the realm key %s of %s is a generated column, which the stream does not carry", col.Name, name)
	}
	switch {
	case col.NotNull:
	case c.in.Shards <= 1:
		c.notice("realm-key-nullable", name, "", "the realm key %s of %s allows NULL; with more than one shard it must not", col.Name, name)
	default:
		c.fixable("realm-key-nullable", name, fmt.Sprintf("ALTER TABLE %s ALTER COLUMN %s SET NOT NULL", t.Name.Quoted(), tenant.QuoteIdent(col.Name)),
			"the realm key %s of %s allows NULL: such a row would have no shard", col.Name, name)
	}
}

// fixable is blocking without --fix-identity, and a notice with it.
func (c *checker) fixable(code, object, remedy, format string, args ...any) {
	f := tenant.Finding{
		Severity: tenant.Blocking, Code: code, Object: object, Message: fmt.Sprintf(format, args...), Fixable: true,
		Remedy: "--fix-identity does it and takes it back at the end; or by hand: " + remedy,
	}
	if c.in.Options.FixIdentity {
		f.Severity, f.Remedy = tenant.Notice, "nothing to do: --fix-identity mends it"
	}
	c.add(f)
}

func (c *checker) identity(t *catalog.Table) {
	ok, why := catalog.IdentityFits(t, c.in.Shards)
	name := t.Name.String()
	if ok && t.RealmFixed && c.in.Shards > 1 && !t.Identity.Has(t.RealmKey) {
		c.notice("realm-not-in-identity", name, "", "as asserted, rows of %s never change %s: a DELETE goes to every shard and is not counted, and an UPDATE that finds no row pauses the replication", name, t.RealmKey)
	}
	switch {
	case ok:
		if t.Identity.Kind == "f" && len(t.Columns) > 0 {
			c.notice("identity-full", name, "a primary key spares it", "%s has REPLICA IDENTITY FULL: each UPDATE and DELETE writes the whole old row to the WAL", name)
		}
	case t.Identity.None():
		c.fixable("no-identity", name, "add a primary key, or ALTER TABLE "+t.Name.Quoted()+" REPLICA IDENTITY FULL",
			"%s: once published, the source's own UPDATE and DELETE there would fail", why)
	case c.in.Shards > 1 && t.Sharded() && !t.Identity.Has(t.RealmKey):
		c.fixable("realm-not-in-identity", name, "a unique index on ("+t.RealmKey+", primary key), and REPLICA IDENTITY USING INDEX; if no row ever changes its "+t.RealmKey+": --realms-never-change "+shellQuote(name),
			"%s: a DELETE, or an UPDATE that moves a row to another realm, could not be sent to its shard", why)
	case t.Identity.Kind != "f" && slices.ContainsFunc(t.Columns, func(col catalog.Column) bool { return col.Generated && t.Identity.Has(col.Name) }):
		c.fixable("identity-generated", name, "ALTER TABLE "+t.Name.Quoted()+" REPLICA IDENTITY FULL", "%s: rows that are changed or deleted could not be found", why)
	default:
		c.fixable("partition-identity-differs", name, "give every partition the same REPLICA IDENTITY", "%s: old rows would arrive incomplete", why)
	}
}

// realmKeyColumns checks what the catalogue does not hold: collations, and NULL in the rows.
func (c *checker) realmKeyColumns(ctx context.Context, tx pgx.Tx) error {
	var oids []uint32
	var cols []string
	byOID := map[uint32]*catalog.Table{}
	for i := range c.cat.Tables {
		if t := &c.cat.Tables[i]; t.Sharded() {
			byOID[t.OID] = t
			oids, cols = append(oids, t.OID), append(cols, t.RealmKey)
		}
	}
	rows, err := tx.Query(ctx, `
		SELECT a.attrelid, l.collname::text
		FROM unnest($1::oid[], $2::text[]) w(rel, col) JOIN pg_attribute a ON a.attrelid = w.rel AND a.attname = w.col
		JOIN pg_collation l ON l.oid = a.attcollation WHERE NOT l.collisdeterministic`, oids, cols)
	if err != nil {
		return err
	}
	var oid uint32
	var collation string
	_, err = pgx.ForEachRow(rows, []any{&oid, &collation}, func() error {
		t := byOID[oid]
		c.block("realm-key-collation", t.Name.String(), "give the column a deterministic collation",
			"the realm key %s of %s has the nondeterministic collation %s: texts that count as equal would go to different shards", t.RealmKey, t.Name, collation)
		return nil
	})
	if err != nil {
		return err
	}
	for _, o := range oids {
		t := byOID[o]
		if t.Column(t.RealmKey).NotNull {
			continue
		}
		if err := c.nulls(ctx, tx, t); err != nil {
			return err
		}
	}
	return nil
}

func (c *checker) nulls(ctx context.Context, tx pgx.Tx, t *catalog.Table) error {
	nested, err := tx.Begin(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = nested.Rollback(context.WithoutCancel(ctx)) }()
	if _, err := nested.Exec(ctx, fmt.Sprintf("SET LOCAL statement_timeout = %d", nullCheckTimeout.Milliseconds())); err != nil {
		return err
	}
	only := "ONLY "
	if t.Partitioned {
		only = ""
	}
	var null bool
	err = nested.QueryRow(ctx, fmt.Sprintf("SELECT EXISTS (SELECT FROM %s%s WHERE %s IS NULL)", only, t.Name.Quoted(), tenant.QuoteIdent(t.RealmKey))).Scan(&null)
	var pg *pgconn.PgError
	switch {
	case errors.As(err, &pg) && pg.Code == "57014":
		c.warn("realm-key-not-checked", t.Name.String(), fmt.Sprintf("SELECT count(*) FROM %s WHERE %s IS NULL", t.Name.Quoted(), tenant.QuoteIdent(t.RealmKey)),
			"whether the realm key %s of %s is NULL somewhere could not be told within %s", t.RealmKey, t.Name, nullCheckTimeout)
	case errors.As(err, &pg) && pg.Code == "42501":
		// no-select says it
	case err != nil:
		return err
	case null && c.in.Shards > 1:
		c.block("realm-key-null", t.Name.String(), fmt.Sprintf("give those rows a realm: UPDATE %s SET %s = … WHERE %s IS NULL", t.Name.Quoted(), tenant.QuoteIdent(t.RealmKey), tenant.QuoteIdent(t.RealmKey)),
			"rows of %s have no realm: %s is NULL", t.Name, t.RealmKey)
	case null:
		c.warn("realm-key-null", t.Name.String(), "give those rows a realm before the database gets a second shard", "rows of %s have no realm: %s is NULL", t.Name, t.RealmKey)
	}
	return nil
}
