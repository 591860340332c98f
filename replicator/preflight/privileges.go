package preflight

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/replicator/catalog"
	"github.com/rehomedb/rehome/tenant"
)

// privileges checks what the source's role may do: stream, publish and fence (which need ownership), and read every row.
func (c *checker) privileges(ctx context.Context, tx pgx.Tx) error {
	var user string
	var stream, create bool
	err := tx.QueryRow(ctx, `
		SELECT current_user::text, r.rolsuper OR r.rolreplication OR EXISTS (
		           SELECT FROM pg_roles m WHERE m.rolname IN ('rds_replication', 'cloudsqlreplica') AND pg_has_role(m.oid, 'MEMBER')),
		       has_database_privilege(current_database(), 'CREATE')
		FROM pg_roles r WHERE r.rolname = current_user`).Scan(&user, &stream, &create)
	if err != nil {
		return err
	}
	quoted := tenant.QuoteIdent(user)
	if stream {
		c.replicationConnection(ctx)
	} else {
		c.block("no-replication-privilege", "source", fmt.Sprintf("ALTER ROLE %s REPLICATION (Amazon RDS: GRANT rds_replication TO %s)", quoted, quoted), "role %s may not stream changes", user)
	}
	if !create {
		c.block("no-create-privilege", "source", fmt.Sprintf("GRANT CREATE ON DATABASE %s TO %s", tenant.QuoteIdent(c.cat.Server.Database), quoted),
			"role %s may not create a publication and the schema rehome in the source's database", user)
	}

	if create {
		c.schemaChanges(ctx)
	}
	oids, _ := members(c.cat)
	rows, err := tx.Query(ctx, `
		SELECT n.nspname::text, c.relname::text, o.rolname::text, pg_has_role(c.relowner, 'USAGE'),
		       has_table_privilege(c.oid, 'SELECT') AND has_schema_privilege(n.oid, 'USAGE'), row_security_active(c.oid)
		FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_roles o ON o.oid = c.relowner
		WHERE c.oid = ANY ($1) ORDER BY 1, 2`, oids)
	if err != nil {
		return err
	}
	var (
		t                     tenant.TableName
		owner                 string
		owns, reads, filtered bool
	)
	_, err = pgx.ForEachRow(rows, []any{&t.Schema, &t.Name, &owner, &owns, &reads, &filtered}, func() error {
		if !owns {
			c.block("not-owner", t.String(), fmt.Sprintf("GRANT %s TO %s, or connect as %s", tenant.QuoteIdent(owner), quoted, owner),
				"%s belongs to %s: only its owner may publish and fence it", t, owner)
		}
		if !reads {
			c.block("no-select", t.String(), fmt.Sprintf("GRANT SELECT ON %s TO %s", t.Quoted(), quoted), "role %s may not read %s", user, t)
		}
		if filtered {
			c.block("row-security", t.String(), fmt.Sprintf("ALTER ROLE %s BYPASSRLS, or connect as a role that row security does not apply to", quoted),
				"row security hides rows of %s from role %s: they would be lost", t, user)
		}
		return nil
	})
	if err != nil {
		return err
	}

	schemas, names := make([]string, len(c.cat.Sequences)), make([]string, len(c.cat.Sequences))
	for i, s := range c.cat.Sequences {
		schemas[i], names[i] = s.Name.Schema, s.Name.Name
	}
	rows, err = tx.Query(ctx, `
		SELECT n.nspname::text, c.relname::text, o.rolname::text, pg_has_role(c.relowner, 'USAGE'),
		       has_sequence_privilege(c.oid, 'SELECT') AND has_schema_privilege(n.oid, 'USAGE')
		FROM unnest($1::text[], $2::text[]) w(schema, name) JOIN pg_namespace n ON n.nspname = w.schema
		JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = w.name JOIN pg_roles o ON o.oid = c.relowner
		ORDER BY 1, 2`, schemas, names)
	if err != nil {
		return err
	}
	_, err = pgx.ForEachRow(rows, []any{&t.Schema, &t.Name, &owner, &owns, &reads}, func() error {
		if !owns {
			c.block("not-owner", t.String(), fmt.Sprintf("GRANT %s TO %s, or connect as %s", tenant.QuoteIdent(owner), quoted, owner),
				"sequence %s belongs to %s: only its owner may stop it at the cutover", t, owner)
		}
		if !reads {
			c.block("no-select", t.String(), fmt.Sprintf("GRANT SELECT ON SEQUENCE %s TO %s", t.Quoted(), quoted), "role %s may not read sequence %s", user, t)
			c.facts.unreadable = append(c.facts.unreadable, t)
		}
		return nil
	})
	return err
}

// members lists the OIDs of all tables, branches and leaves, and the table that each belongs to.
func members(cat *catalog.Catalogue) ([]uint32, map[uint32]*catalog.Table) {
	of := make(map[uint32]*catalog.Table)
	var oids []uint32
	note := func(oid uint32, t *catalog.Table) {
		if of[oid] == nil {
			of[oid] = t
			oids = append(oids, oid)
		}
	}
	for i := range cat.Tables {
		t := &cat.Tables[i]
		note(t.OID, t)
		for _, set := range [][]catalog.Leaf{t.Branches, t.Leaves} {
			for _, l := range set {
				note(l.OID, t)
			}
		}
	}
	return oids, of
}
