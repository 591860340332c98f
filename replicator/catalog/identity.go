package catalog

import (
	"fmt"
	"slices"
	"strings"

	"github.com/rehomedb/rehome/tenant"
)

// identityPrefix begins the names of indexes that PlanIdentity makes; the table's OID follows.
const identityPrefix = "rehome_ident_"

// IsIdentityIndex reports whether an index was made by a plan of PlanIdentity.
func IsIdentityIndex(name string) bool { return strings.HasPrefix(name, identityPrefix) }

// notNullPrefix begins the names of the checks that stand in for NOT NULL while it is made.
const notNullPrefix = "rehome_nn_"

// PlanIdentity plans the replica identities that routing to more than one shard needs; see PlanIdentityFor.
func PlanIdentity(cat *Catalogue, opts tenant.ReplicationOptions) ([]tenant.SourceChange, []tenant.Finding) {
	return PlanIdentityFor(cat, opts, 2)
}

// PlanIdentityFor plans what gives every table a replica identity that a replication to that many shards can work with.
//
// With more than one shard, each sharded table's identity must contain its realm key, unless the owner asserts that its
// rows never change their realm; and the realm key must not be NULL.
// A table with a primary key (or an identity index) gets a unique index on realm key and that key; one without gets
// REPLICA IDENTITY FULL, at a price that a finding names. Tables without any identity get FULL in every case: publishing
// them otherwise makes the source's own UPDATE and DELETE fail.
//
// Every change is one statement that may be run again, none may run inside a transaction, and Undo restores exactly what
// was: the former identity, nullability, and no index. Findings name what is dear.
func PlanIdentityFor(cat *Catalogue, _ tenant.ReplicationOptions, shards int) ([]tenant.SourceChange, []tenant.Finding) {
	p := &planner{version: cat.Server.Version}
	for i := range cat.Tables {
		p.table(&cat.Tables[i], shards)
	}
	for i := range p.changes {
		p.changes[i].Ordinal = i + 1
	}
	return p.changes, p.findings
}

type planner struct {
	version  int
	changes  []tenant.SourceChange
	findings []tenant.Finding
}

// maxKey is how many columns an index may have (INDEX_MAX_KEYS of pg_config_manual.h).
const maxKey = 32

// generatedAmong names the first generated column among some; "" if there is none.
func (t *Table) generatedAmong(names []string) string {
	for _, n := range names {
		if c := t.Column(n); c != nil && c.Generated {
			return n
		}
	}
	return ""
}

// IdentityFits reports whether a table's identity, as it is, serves a replication to that many shards, or why not.
func IdentityFits(t *Table, shards int) (ok bool, why string) {
	if len(t.Columns) == 0 {
		// Rows without columns are all alike; FULL alone lets the source delete them once they are published.
		return t.Identity.Kind == "f", t.Name.String() + " has no columns and no replica identity"
	}
	routed := shards > 1 && t.Sharded() && !t.RealmFixed
	members := []Leaf{{Name: t.Name, Identity: t.Identity}}
	if t.Partitioned {
		members = append(members, t.Leaves...)
	}
	for _, m := range members {
		switch {
		case m.Identity.None():
			return false, m.Name.String() + " has no replica identity"
		case m.Identity.Kind != "f" && t.generatedAmong(m.Identity.Columns) != "":
			return false, fmt.Sprintf("the replica identity of %s contains the generated column %s, which is not streamed", m.Name, t.generatedAmong(m.Identity.Columns))
		case routed && !m.Identity.Has(t.RealmKey):
			return false, fmt.Sprintf("the replica identity of %s does not contain the realm key %s", m.Name, t.RealmKey)
		case !m.Identity.Covers(t.Identity):
			return false, fmt.Sprintf("the replica identity of partition %s differs from that of %s", m.Name, t.Name)
		}
	}
	return true, ""
}

func (p *planner) add(object, description, do, undo string) {
	p.changes = append(p.changes, tenant.SourceChange{Object: object, Description: description, Do: do, Undo: undo})
}

func (p *planner) table(t *Table, shards int) {
	routed := shards > 1 && t.Sharded()
	if routed {
		p.notNull(t)
	}
	if ok, _ := IdentityFits(t, shards); ok {
		return
	}
	routed = routed && !t.RealmFixed
	key := t.PrimaryKey
	if t.DeferrableKey {
		// An immediate unique index on the same columns would forbid what the deferrable key allows.
		key = nil
	}
	if key == nil && t.Identity.Kind == "i" && !t.Identity.None() {
		key = t.Identity.Columns
	}
	switch {
	case key == nil:
		p.full(t, "it has no key")
	case t.generatedAmong(key) != "":
		p.full(t, "its key contains the generated column "+t.generatedAmong(key))
	case routed && !slices.Contains(key, t.RealmKey) && len(key) == maxKey:
		p.full(t, "its key has as many columns as an index may have")
	case t.PrimaryKey != nil && (!routed || slices.Contains(key, t.RealmKey)):
		// The key serves as it is; only the identity points elsewhere.
		p.useKey(t)
	default:
		if routed && !slices.Contains(key, t.RealmKey) {
			key = append([]string{t.RealmKey}, key...)
		}
		p.index(t, key)
	}
}

// notNull plans NOT NULL for the realm key without a scan under an exclusive lock: a CHECK that is valid lets SET NOT NULL
// skip its scan (ALTER TABLE in the Postgres manual).
func (p *planner) notNull(t *Table) {
	col := t.Column(t.RealmKey)
	if col == nil || col.NotNull {
		return
	}
	obj, name, column := t.Name.String(), t.Name.Quoted(), tenant.QuoteIdent(t.RealmKey)
	only, noInherit := "", ""
	if t.Children {
		only, noInherit = "ONLY ", " NO INHERIT" // its inheritance children are tables of their own
	}
	check := tenant.QuoteIdent(fmt.Sprintf("%s%d", notNullPrefix, t.OID))
	exists := fmt.Sprintf("EXISTS (SELECT FROM pg_constraint WHERE conrelid = %d AND conname = '%s%d')", t.OID, notNullPrefix, t.OID)
	open := fmt.Sprintf("EXISTS (SELECT FROM pg_attribute WHERE attrelid = %d AND attname = %s AND NOT attnotnull)", t.OID, tenant.QuoteLiteral(t.RealmKey))
	drop := fmt.Sprintf("ALTER TABLE IF EXISTS %s%s DROP CONSTRAINT IF EXISTS %s", only, name, check)

	if t.Children && p.version >= 180000 {
		// From 18 on NOT NULL is a constraint with a name, which alone can be kept from the children.
		p.add(obj, fmt.Sprintf("%s: %s NOT NULL, for new rows", obj, t.RealmKey),
			doBlock(fmt.Sprintf("IF NOT %s THEN ALTER TABLE ONLY %s ADD CONSTRAINT %s NOT NULL %s NO INHERIT NOT VALID; END IF;", exists, name, check, column)), drop)
		p.add(obj, fmt.Sprintf("%s: %s NOT NULL, for the rows that are there", obj, t.RealmKey),
			fmt.Sprintf("ALTER TABLE ONLY %s VALIDATE CONSTRAINT %s", name, check), "")
		return
	}
	p.add(obj, fmt.Sprintf("%s: check that %s is not null, for new rows", obj, t.RealmKey),
		doBlock(fmt.Sprintf("IF %s AND NOT %s THEN ALTER TABLE %s%s ADD CONSTRAINT %s CHECK (%s IS NOT NULL)%s NOT VALID; END IF;", open, exists, only, name, check, column, noInherit)), drop)
	p.add(obj, fmt.Sprintf("%s: check that %s is not null, for the rows that are there", obj, t.RealmKey),
		doBlock(fmt.Sprintf("IF %s THEN ALTER TABLE %s%s VALIDATE CONSTRAINT %s; END IF;", exists, only, name, check)), "")
	p.add(obj, fmt.Sprintf("%s: %s NOT NULL", obj, t.RealmKey),
		fmt.Sprintf("ALTER TABLE %s%s ALTER COLUMN %s SET NOT NULL", only, name, column),
		p.nullableAgain(t, only, name, column))
	p.add(obj, fmt.Sprintf("%s: drop the check that NOT NULL replaces", obj), drop, "")
}

// nullableAgain undoes NOT NULL. In a partition tree DROP NOT NULL reaches the partitions too: those that were stricter
// than the root before become so again.
func (p *planner) nullableAgain(t *Table, only, name, column string) string {
	undo := fmt.Sprintf("ALTER TABLE IF EXISTS %s%s ALTER COLUMN %s DROP NOT NULL", only, name, column)
	var strict []string
	for _, set := range [][]Leaf{t.Branches, t.Leaves} {
		for _, l := range set {
			if t.Partitioned && !l.Nullable {
				strict = append(strict, fmt.Sprintf("ALTER TABLE IF EXISTS %s ALTER COLUMN %s SET NOT NULL;", l.Name.Quoted(), column))
			}
		}
	}
	if strict == nil {
		return undo
	}
	return doBlock(undo + "; " + strings.Join(strict, " "))
}

// full plans REPLICA IDENTITY FULL for a table and its leaves.
func (p *planner) full(t *Table, why string) {
	p.findings = append(p.findings, tenant.Finding{
		Severity: tenant.Warning, Code: "identity-full", Object: t.Name.String(),
		Message: fmt.Sprintf("%s gets REPLICA IDENTITY FULL, because %s: each UPDATE and DELETE there writes the whole old row to the WAL", t.Name, why),
		Remedy:  "give it a primary key to spare that",
	})
	for _, m := range identityMembers(t) {
		if m.Identity.Kind != "f" {
			p.add(m.Name.String(), m.Name.String()+": REPLICA IDENTITY FULL",
				fmt.Sprintf("ALTER TABLE %s REPLICA IDENTITY FULL", m.Name.Quoted()), formerIdentity(m))
		}
	}
}

// useKey plans REPLICA IDENTITY DEFAULT where the primary key serves.
func (p *planner) useKey(t *Table) {
	for _, m := range identityMembers(t) {
		if m.Identity.Kind != "d" {
			p.add(m.Name.String(), m.Name.String()+": REPLICA IDENTITY DEFAULT",
				fmt.Sprintf("ALTER TABLE %s REPLICA IDENTITY DEFAULT", m.Name.Quoted()), formerIdentity(m))
		}
	}
}

// identityMembers lists the relations whose identity counts: the table and, in a partition tree, the leaves.
func identityMembers(t *Table) []Leaf {
	out := []Leaf{{OID: t.OID, Name: t.Name, Identity: t.Identity}}
	if t.Partitioned {
		out = append(out, t.Leaves...)
	}
	return out
}

func formerIdentity(m Leaf) string {
	to := "DEFAULT"
	switch m.Identity.Kind {
	case "f":
		to = "FULL"
	case "n":
		to = "NOTHING"
	case "i":
		if m.Identity.Index != "" {
			to = "USING INDEX " + tenant.QuoteIdent(m.Identity.Index)
		} else {
			to = "NOTHING" // its index was dropped, which amounts to this
		}
	}
	return fmt.Sprintf("ALTER TABLE IF EXISTS %s REPLICA IDENTITY %s", m.Name.Quoted(), to)
}

const (
	createConcurrently = "CREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS "
	dropConcurrently   = "DROP INDEX CONCURRENTLY IF EXISTS "
)

// index plans a unique index on the columns and makes it the identity. In a partition tree the leaves' indexes come
// first, each built concurrently, then those of branches and root, which are empty shells that the others are attached to.
func (p *planner) index(t *Table, key []string) {
	cols := make([]string, len(key))
	for i, k := range key {
		cols[i] = tenant.QuoteIdent(k)
	}
	list := strings.Join(cols, ", ")
	indexName := func(oid uint32) string { return fmt.Sprintf("%s%d", identityPrefix, oid) }
	qualified := func(l Leaf) string {
		return tenant.TableName{Schema: l.Name.Schema, Name: indexName(l.OID)}.Quoted()
	}
	root := Leaf{OID: t.OID, Name: t.Name, Identity: t.Identity}

	for _, l := range t.Leaves {
		p.add(l.Name.String(), fmt.Sprintf("%s: unique index %s on (%s), built concurrently", l.Name, indexName(l.OID), list),
			fmt.Sprintf("%s%s ON %s (%s)", createConcurrently, tenant.QuoteIdent(indexName(l.OID)), l.Name.Quoted(), list),
			dropConcurrently+qualified(l))
	}
	if t.Partitioned {
		// Bottom up: dropping the root's index takes all that is attached with it, dropping a shell of a branch alone works
		// only while it is not attached. Undo goes backwards: root, branches, leaves.
		shells := slices.Clone(t.Branches)
		slices.Reverse(shells)
		shells = append(shells, root)
		for _, s := range shells {
			p.add(s.Name.String(), fmt.Sprintf("%s: unique index %s on (%s), for its partitions' to be attached", s.Name, indexName(s.OID), list),
				fmt.Sprintf("CREATE UNIQUE INDEX IF NOT EXISTS %s ON ONLY %s (%s)", tenant.QuoteIdent(indexName(s.OID)), s.Name.Quoted(), list),
				"DROP INDEX IF EXISTS "+qualified(s))
		}
		above := map[uint32]Leaf{root.OID: root}
		for _, b := range t.Branches {
			above[b.OID] = b
		}
		for _, set := range [][]Leaf{t.Leaves, t.Branches} {
			for _, l := range set {
				p.add(l.Name.String(), fmt.Sprintf("%s: attach its index %s", l.Name, indexName(l.OID)),
					fmt.Sprintf("ALTER INDEX %s ATTACH PARTITION %s", qualified(above[l.Parent]), qualified(l)), "")
			}
		}
	}
	for _, m := range identityMembers(t) {
		do := fmt.Sprintf("ALTER TABLE %s REPLICA IDENTITY USING INDEX %s", m.Name.Quoted(), tenant.QuoteIdent(indexName(m.OID)))
		if t.Partitioned && m.OID == t.OID {
			// A partition that came while this ran has no index yet, and leaves the root's invalid.
			do = doBlock(fmt.Sprintf("IF EXISTS (SELECT FROM pg_index WHERE indexrelid = to_regclass(%s) AND NOT indisvalid) THEN "+
				"RAISE EXCEPTION 'a partition was added meanwhile: start again'; END IF; %s;", tenant.QuoteLiteral(qualified(root)), do))
		}
		p.add(m.Name.String(), fmt.Sprintf("%s: REPLICA IDENTITY USING INDEX %s", m.Name, indexName(m.OID)), do, formerIdentity(m))
	}
}

// doBlock wraps PL/pgSQL statements into a single one.
func doBlock(body string) string {
	tag := "$rehome$"
	for i := 0; strings.Contains(body, tag); i++ {
		tag = fmt.Sprintf("$rehome%d$", i)
	}
	return "DO " + tag + " BEGIN " + body + " END " + tag
}
