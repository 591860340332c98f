package replicator_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/rehomedb/rehome/tenant"
)

// oddNames are what Postgres takes as a name and programs trip over. Long ones fill the 63 bytes.
var oddNames = []string{
	`"`, `'`, `a.b`, `a"b`, `select`, `user`, `UPPER`, ` lead`, `trail `, "new\nline", `back\slash`, `100%`, `%s`, `$1`, `$rehome$`, `;--`, `/*`, `日本`, `🦄`, `é`, `v`, `t`, `c0`, `x y`,
	strings.Repeat("n", 63), strings.Repeat("日", 21), `{a,b}`, `(x)`, `*`, `rehome`, `pg_x`[1:], `?`, `:a`, `0`, "\ttab", `,`,
}

// TestHazardOddNames gives every kind of object each of the names.
func TestHazardOddNames(t *testing.T) {
	t.Parallel()
	var before, stream strings.Builder
	opts := tenant.ReplicationOptions{TableKeys: map[string]string{}, FixIdentity: true}
	q := tenant.QuoteIdent
	for i, n := range oddNames {
		schema, other, key := n, oddNames[(i+1)%len(oddNames)], oddNames[(i+2)%len(oddNames)]
		if n == "rehome" {
			schema = "rehome2"
		}
		table := tenant.TableName{Schema: schema, Name: n}
		opts.TableKeys[table.String()] = key
		fmt.Fprintf(&before, "CREATE SCHEMA %s;\nCREATE TYPE %s.%s AS ENUM (%s, %s);\nCREATE DOMAIN %s.%s AS text CONSTRAINT %s CHECK (VALUE <> 'x');\n",
			q(schema), q(schema), q("e"+cut(n)), tenant.QuoteLiteral(n), tenant.QuoteLiteral(other), q(schema), q("d"+cut(n)), q(n))
		fmt.Fprintf(&before, "CREATE SEQUENCE %s.%s;\n", q(schema), q("s"+cut(n)))
		fmt.Fprintf(&before, "CREATE TABLE %s (%s int NOT NULL DEFAULT nextval(%s), %s text NOT NULL, %s %s.%s, %s text, CONSTRAINT %s PRIMARY KEY (%s), CONSTRAINT %s CHECK (%s <> '') NO INHERIT);\n",
			table.Quoted(), q(n), tenant.QuoteLiteral(q(schema)+"."+q("s"+cut(n))), q(key), q(other), q(schema), q("e"+cut(n)), q("big"), q("p"+cut(n)), q(n), q(n), q(key))
		fmt.Fprintf(&before, "CREATE INDEX %s ON %s (%s) WHERE %s = %s;\n", q("i"+cut(n)), table.Quoted(), q(other), q(other), tenant.QuoteLiteral(n))
		fmt.Fprintf(&before, "INSERT INTO %s (%s, %s) SELECT 'r' || g, %s FROM generate_series(1, 6) g;\n", table.Quoted(), q(key), q(other), tenant.QuoteLiteral(n))
		fmt.Fprintf(&stream, "UPDATE %s SET %s = %s; UPDATE %[1]s SET %[4]s = 'm' || %[5]s WHERE %[5]s %% 2 = 0; DELETE FROM %[1]s WHERE %[5]s = 3; INSERT INTO %[1]s (%[4]s) SELECT 'q' || g FROM generate_series(1, 4) g;\n",
			table.Quoted(), q(other), tenant.QuoteLiteral(other), q(key), q(n))
		if i%6 == 0 { // partitions of odd names, one of them truncated alone
			part := tenant.TableName{Schema: schema, Name: "part " + cut(n)}
			leaf := tenant.TableName{Schema: schema, Name: "leaf " + cut(n)}
			fmt.Fprintf(&before, "CREATE TABLE %s (realm_id text NOT NULL, %s int NOT NULL, PRIMARY KEY (realm_id, %[2]s)) PARTITION BY LIST (%[2]s); CREATE TABLE %[3]s PARTITION OF %[1]s DEFAULT; INSERT INTO %[1]s VALUES ('a', 1), ('b', 2);\n",
				part.Quoted(), q(n), leaf.Quoted())
			fmt.Fprintf(&stream, "TRUNCATE %s; INSERT INTO %s VALUES ('c', 3);\n", leaf.Quoted(), part.Quoted())
		}
		opts.Accept = append(opts.Accept, tenant.Finding{Code: "constraint-without-realm", Object: tenant.TableName{Schema: schema, Name: "p" + cut(n)}.String()}.ID())
	}
	hazard{before: before.String(), stream: []string{stream.String()}, opts: opts}.runOn(t, newRig(t, 2, opts, "SELECT 1"))
}

// cut leaves room for a prefix within 63 bytes.
func cut(s string) string {
	if len(s) > 50 {
		return s[:48]
	}
	return s
}
