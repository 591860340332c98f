package replicator_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/rehomedb/rehome/tenant"
)

// typed is a type with values at its limits. Types with an order are part of the key; rows of the others are found by
// their whole content.
type typed struct {
	typ    string
	key    bool
	values []string
}

var builtinTypes = []typed{
	{"smallint", true, []string{"-32768", "0", "32767"}},
	{"integer", true, []string{"-2147483648", "0", "2147483647"}},
	{"bigint", true, []string{"-9223372036854775808", "0", "9223372036854775807"}},
	{"numeric", true, []string{"NaN", "Infinity", "-Infinity", "0", "0.000", "-0.1", "=repeat('9', 5000)", "=('1e-' || 2000)", "1e+400", "=repeat('9', 131072)", "=('0.' || repeat('1', 16383))"}},
	{"numeric(10,3)", true, []string{"1", "1.500", "-9999999.999", "NaN"}},
	{"real", true, []string{"NaN", "Infinity", "-Infinity", "-0", "0", "1e-45", "3.4028235e38", "0.1", "1.17549e-38"}},
	{"double precision", true, []string{"NaN", "Infinity", "-Infinity", "-0", "0", "5e-324", "1.7976931348623157e308", "0.1", "0.30000000000000004", "2.2250738585072011e-308"}},
	{"text", true, []string{"", " ", "NULL", "null", `\N`, `\.`, `"`, `\`, `\\x`, "'", "{}", "{a,b}", "a\tb\nc\rd\be\f\v", "grüße", "日本語", "🦄👩‍👩‍👧", "\u0001\u007f", "=repeat('lang', 500)", "é", "e\u0301", "$1", "%s%d%"}},
	{"varchar(5)", true, []string{"", "abc  ", "日本語日本", "     "}},
	{"character(5)", true, []string{"", "ab", "ab   ", "日本", `a"\`}},
	{`"char"`, true, []string{"", "a", `\`, `"`, "=(-1)", "=(-128)", " "}},
	{"name", true, []string{"", "odd \"name\"", "=repeat('n', 63)", "日本語"}},
	{"bytea", true, []string{"", "=(SELECT string_agg(set_byte('\\x00', 0, g), '' ORDER BY g) FROM generate_series(0, 255) g)", `\x00`, `\x5c5c`, `\x27`}},
	{"boolean", true, []string{"true", "false", "=(NOT true)"}},
	{"date", true, []string{"infinity", "-infinity", "4713-01-01 BC", "0001-12-31 BC", "5874897-12-31", "2000-02-29"}},
	{"timestamp", true, []string{"infinity", "-infinity", "4713-01-01 00:00:00 BC", "294276-12-31 23:59:59.999999", "2000-01-01 00:00:00.000001", "1999-12-31 24:00:00"}},
	{"timestamp(0)", true, []string{"2000-01-01 00:00:01", "0044-03-15 12:00 BC"}},
	{"timestamptz", true, []string{"infinity", "-infinity", "4713-01-02 00:00:00+00 BC", "294276-12-30 23:59:59.999999+00", "2000-01-01 00:00:00+15:59:59", "2000-07-01 00:00 Asia/Kathmandu", "1800-01-01 00:00 Europe/Amsterdam"}},
	{"time", true, []string{"00:00", "24:00:00", "23:59:59.999999"}},
	{"timetz", true, []string{"00:00+00", "24:00:00-15:59:59", "23:59:59.999999+15:59:59", "12:00+05:45"}},
	{"interval", true, []string{"0", "-178000000 years", "178000000 years", "1 mon -1 day +00:00:00.000001", "-1 mon +1 day -01:02:03.5", "30 days", "1 mon", "720 hours", "-00:00:01", "2562047788:00:54.775807"}},
	{"money", true, []string{"-92233720368547758.08", "92233720368547758.07", "0", "-0.01", "1234.5"}},
	{"uuid", true, []string{"00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff", "0123456789abcdef0123456789ABCDEF"}},
	{"inet", true, []string{"0.0.0.0/0", "255.255.255.255", "10.1.2.3/8", "::", "::1/64", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128", "::ffff:1.2.3.4"}},
	{"cidr", true, []string{"0.0.0.0/0", "10.0.0.0/8", "255.255.255.255/32", "::/0", "fe80::/10"}},
	{"macaddr", true, []string{"00:00:00:00:00:00", "ff:ff:ff:ff:ff:ff", "08002b:010203"}},
	{"macaddr8", true, []string{"00:00:00:00:00:00:00:00", "ff:ff:ff:ff:ff:ff:ff:ff", "08:00:2b:01:02:03"}},
	{"bit(9)", true, []string{"000000000", "111111111", "101010101"}},
	{"bit varying", true, []string{"", "0", "1", "=repeat('10', 5000)::bit varying"}},
	{"json", false, []string{"null", `"scalar"`, `{"a":1,  "a":2 ,"b":"\u0000"}`, `[ ]`, ` 1e400 `, `"日本\ud83e\udd84"`}},
	{"jsonb", true, []string{"null", `"scalar"`, `""`, `{"a": {"b": [1, 2.00, null, "x\\\"y"]}}`, "[]", "{}", "1e400", "1.0", "1.000", "true"}},
	{"jsonpath", false, []string{"$", `strict $."a b"[*] ? (@.x > 1.5 && @ like_regex "^\\d")`}},
	{"xml", false, []string{"", "plain & simple"[:5], "<a>1</a><b/>", `<?xml version="1.0" encoding="ISO-8859-1" standalone="yes"?><a x="é">ü</a>`, "<!DOCTYPE a><a/>", "<![CDATA[<x>]]>"}},
	{"tsvector", true, []string{"", "a:1A fat:2B,4C cat:5D", `'it''s' '\\' ' ' '日本':3`}},
	{"tsquery", true, []string{"", "fat & (rat | !cat:*AB) <2> x", `'a \\ b'`}},
	{"point", false, []string{"(0,-0)", "(NaN,Infinity)", "(-Infinity,5e-324)", "(0.1,0.30000000000000004)"}},
	{"line", false, []string{"{1,-1,0}", "{0.1,2,1e300}"}},
	{"lseg", false, []string{"[(0,0),(1,1)]", "[(NaN,0),(-Infinity,1)]"}},
	{"box", false, []string{"(1,1),(0,0)", "(Infinity,1),(0.1,-0)"}},
	{"path", false, []string{"((0,0),(1,1))", "[(0,0),(1,1),(2,0.1)]"}},
	{"polygon", false, []string{"((0,0),(1,1),(2,0))", "((NaN,0))"}},
	{"circle", false, []string{"<(0,0),0>", "<(1,NaN),Infinity>"}},
	{"oid", true, []string{"0", "4294967295", "16384"}},
	{"xid", false, []string{"0", "4294967295"}},
	{"cid", false, []string{"0", "4294967295"}},
	{"tid", true, []string{"(0,0)", "(4294967295,65535)"}},
	{"xid8", true, []string{"0", "18446744073709551615", "3"}},
	{"pg_lsn", true, []string{"0/0", "FFFFFFFF/FFFFFFFF", "1/2"}},
	{"txid_snapshot", false, []string{"1:1:", "10:20:10,14,15", "9223372036854775806:9223372036854775806:"}},
	{"pg_snapshot", false, []string{"1:1:", "10:20:10,14,15"}},
	{"refcursor", false, []string{"", "c \"x\""}},
	{"int2vector", false, []string{"", "1 2 -3"}},
	{"oidvector", true, []string{"", "1 2 3"}},
	{"aclitem", false, []string{"=('=arwdDxt/' || quote_ident(current_user))", "=(quote_ident(current_user) || '=r*/' || quote_ident(current_user))"}},
	{"int4range", true, []string{"empty", "(,)", "[1,5)", "[-2147483648,2147483647)", "(,3]"}},
	{"numrange", true, []string{"empty", "(,)", "[1.0,1.00]", "(-Infinity,NaN]", "[0,0.1)"}},
	{"tstzrange", true, []string{"empty", "[2000-01-01 00:00+05:45,infinity]", "(-infinity,)"}},
	{"daterange", true, []string{"[4713-01-01 BC,infinity)", "empty"}},
	{"int8multirange", true, []string{"{}", "{(,1),[5,9),[100,)}"}},
	{"nummultirange", true, []string{"{}", "{[1.5,2.50)}", "{(,)}"}},
	{"int[]", true, []string{"{}", "{NULL}", "{1,NULL,3}", "{{1,2},{3,4}}", "[-2:0]={1,2,3}", "[0:1][5:6]={{1,2},{NULL,4}}", "{{{{{{1}}}}}}"}},
	{"text[]", true, []string{"{}", "{NULL,\"NULL\",null}", `{"",""}`, `{"a,b","{x}","q\"q","b\\b"," "}`, "[5:6]={x,y}", "{\"line\nbreak\",'}"}},
	{"bytea[]", true, []string{`{"\\x00","\\xff",NULL}`, "{}"}},
	{"numeric(6,2)[]", true, []string{"{NaN,1.50,NULL}", "{}"}},
	{"timestamptz[]", true, []string{`{infinity,"2000-01-01 00:00:00+05:45"}`, "{}"}},
	{"jsonb[]", true, []string{`{"{\"a\": \"b,c\"}","null",NULL}`, "{}"}},
	{"box[]", false, []string{"{(1,1),(0,0);(2,2),(1,1)}", "{}", "[3:3]={(1,1),(0,0)}"}},
	{"point[]", false, []string{`{"(1,2)","(NaN,3)"}`}},
	{"character(3)[]", true, []string{`{"a","ab ",NULL}`}},
	{`"char"[]`, true, []string{`{a,"\"",""}`, "{}"}},
	{"int4range[]", true, []string{`{"[1,2)",empty,NULL}`}},
}

const customTypesDDL = `
	CREATE SCHEMA ext; CREATE SCHEMA "Odd ""schema.";
	CREATE EXTENSION hstore SCHEMA ext; CREATE EXTENSION ltree SCHEMA ext; CREATE EXTENSION citext SCHEMA ext; CREATE EXTENSION cube SCHEMA ext;
	CREATE EXTENSION seg SCHEMA ext; CREATE EXTENSION isn SCHEMA ext; CREATE EXTENSION intarray SCHEMA ext; CREATE EXTENSION pg_trgm SCHEMA ext;
	CREATE EXTENSION "uuid-ossp" SCHEMA ext; CREATE EXTENSION pgcrypto SCHEMA ext; CREATE EXTENSION lo SCHEMA ext;
	CREATE TYPE "Odd ""schema."."En um" AS ENUM ('', 'red', 'a "quoted", \ {one}', E'line\nbreak', '日本', 'NULL');
	CREATE DOMAIN small AS int CHECK (VALUE > -100);
	CREATE DOMAIN smaller AS small NOT NULL CHECK (VALUE < 100);
	CREATE DOMAIN mail AS ext.citext CHECK (VALUE <> '');
	CREATE DOMAIN hue AS "Odd ""schema."."En um";
	CREATE DOMAIN tags AS text[] CHECK (cardinality(VALUE) < 5);
	CREATE DOMAIN padded AS character(4);
	CREATE TYPE inner_row AS (a int, b text, "C ""c" numeric(5,2));
	CREATE TYPE outer_row AS (i inner_row, list inner_row[], e "Odd ""schema."."En um", t tags, n text);
	ALTER TYPE outer_row DROP ATTRIBUTE n; ALTER TYPE outer_row ADD ATTRIBUTE last text;
	CREATE DOMAIN checked_row AS inner_row CHECK ((VALUE).a > 0);
	CREATE TYPE text_range AS RANGE (subtype = text, collation = "C");
	CREATE TYPE hue_range AS RANGE (subtype = "Odd ""schema."."En um", multirange_type_name = "hue multi");
	CREATE DOMAIN hours AS int4range CHECK (NOT isempty(VALUE));
	CREATE FUNCTION shout(text, int) RETURNS text LANGUAGE sql AS 'SELECT upper($1)'; CREATE FUNCTION shout(text) RETURNS text LANGUAGE sql AS 'SELECT upper($1)';
	CREATE TABLE "Odd ""schema."."Ta.ble" (realm_id text NOT NULL, id int NOT NULL, PRIMARY KEY (realm_id, id)); CREATE SEQUENCE "Odd ""schema."."Se q";
	CREATE TEXT SEARCH CONFIGURATION public.conf (COPY = simple);`

var customTypes = []typed{
	{"ext.hstore", true, []string{"", `a=>NULL, "b \"q\""=>"", c=>"NULL"`, `"=>"=>"\\"`}},
	{"ext.ltree", true, []string{"", "Top.Science_1.x", "=repeat('a', 200)"}},
	{"ext.citext", true, []string{"Mixed", "mixed", "", "ÄÖ"}},
	{"ext.cube", true, []string{"(1,2),(3,4)", "(NaN)", "(0.1,0.30000000000000004)", "()"}},
	{"ext.seg", true, []string{"1.0", "1.00", "~6.50", "1 .. 2", "<3", "5(+-)0.3"}},
	{"ext.isbn13", true, []string{"978-0-393-04002-9", "9780393040005!"}},
	{"ext.issn", true, []string{"1436-4522"}},
	{"ext.lo", true, []string{"0", "4294967295"}},
	{"ext.hstore[]", true, []string{`{"a=>\"b,c\"",NULL,""}`}},
	{"ext.citext[]", true, []string{"{A,a,NULL}"}},
	{"ext.ltree[]", true, []string{"{a.b,c}"}},
	{`"Odd ""schema."."En um"`, true, []string{"", "red", `a "quoted", \ {one}`, "line\nbreak", "日本", "NULL"}},
	{`"Odd ""schema."."En um"[]`, true, []string{`{red,"","a \"quoted\", \\ {one}","NULL",NULL}`, "{}", "[2:2]={red}"}},
	{"small", true, []string{"-99", "2147483647"}},
	{"smaller", true, []string{"-99", "99", "0"}},
	{"mail", true, []string{"Person@X", "person@x", "é"}},
	{"hue", true, []string{"red", "", "日本"}},
	{"hue[]", true, []string{"{red,NULL}", "{}"}},
	{"tags", true, []string{"{}", "{a,NULL,\"x,y\"}", "[0:1]={p,q}", "{{a,b},{c,d}}"}},
	{"tags[]", false, []string{`{"{a,b}","{}"}`}},
	{"padded", true, []string{"", "ab", "abcd"}},
	{"inner_row", true, []string{"(1,x,1.50)", "(,,)", `(0,"a ""q"", (b)",NaN)`, `(1,"",)`}},
	{"inner_row[]", true, []string{`{"(1,x,)",NULL,"(,,)"}`, "{}"}},
	{"outer_row", true, []string{`("(1,x,2.00)","{""(2,y,)"",NULL}",red,"{a,b}",z)`, "(,,,,)", `("(,,)",{},"a ""quoted"", \\ {one}",,"")`}},
	{"checked_row", true, []string{"(1,x,)", "(7,,)"}},
	{"checked_row[]", false, []string{`{"(1,x,)",NULL}`}},
	{"text_range", true, []string{"empty", "(,)", `["a,b","c""d")`, `["",z]`}},
	{"hue_range", true, []string{"empty", "[red,日本]"}},
	{`"hue multi"`, true, []string{"{}", "{[red,日本]}"}},
	{"hours", true, []string{"[1,2)", "(,)"}},
	{"regclass", true, []string{`"Odd ""schema."."Ta.ble"`, "pg_class", "0", `"Odd ""schema."."Se q"`, "4294967295"}},
	{"regclass[]", true, []string{`{pg_class,"\"Odd \"\"schema.\".\"Ta.ble\""}`}},
	{"regtype", true, []string{"integer", `"Odd ""schema."."En um"`, `inner_row[]`, "timestamp with time zone", `"char"`, "small"}},
	{"regproc", true, []string{"pg_catalog.now", "0"}},
	{"regprocedure", true, []string{"shout(text,int)", "shout(text)", "now()"}},
	{"regoper", true, []string{"pg_catalog.||/"}},
	{"regoperator", true, []string{"+(integer,integer)", "ext.@>(ext.hstore,ext.hstore)"}},
	{"regrole", true, []string{"=current_user::text", "0"}},
	{"regnamespace", true, []string{`"Odd ""schema."`, "pg_catalog"}},
	{"regconfig", true, []string{"simple", "public.conf"}},
	{"regdictionary", true, []string{"simple"}},
	{"regcollation", true, []string{`"C"`}},
}

// typesHazard makes a table for each type. Rows come by copy; then they are changed, deleted, made again one by one and in
// numbers, and moved to other realms, with values of the type in the key or in what a row is found by.
func typesHazard(prelude string, types []typed) hazard {
	h := hazard{before: prelude}
	var tables []string
	var inserts, again strings.Builder
	var b strings.Builder
	for i, ty := range types {
		table := fmt.Sprintf("public.t%d", i)
		tables = append(tables, table)
		fmt.Fprintf(&b, "CREATE TABLE %s (realm_id text NOT NULL, i int NOT NULL, v %s NOT NULL, w %s, n int", table, ty.typ, strings.ReplaceAll(ty.typ, "smaller", "small"))
		if ty.key {
			b.WriteString(", PRIMARY KEY (realm_id, v)")
		}
		b.WriteString(");\n")
		if !ty.key {
			fmt.Fprintf(&b, "ALTER TABLE %s REPLICA IDENTITY FULL;\n", table)
		}
		for k, v := range ty.values {
			row := func(realm string) string {
				return fmt.Sprintf("('%s%d', %d, %s, %s, 0)", realm, k, k, lit(v, ty.typ), lit(v, ty.typ))
			}
			fmt.Fprintf(&inserts, "INSERT INTO %s VALUES %s;\n", table, row("r"))
			fmt.Fprintf(&again, "INSERT INTO %s VALUES %s, %s, %s, %s;\n", table, row("s"), row("t"), row("u"), row("v"))
			if k%2 == 0 {
				fmt.Fprintf(&again, "INSERT INTO %s VALUES %s;\n", table, row("r"))
			}
		}
	}
	h.before += b.String() + inserts.String()
	h.stream = []string{
		each(tables, "UPDATE %s SET n = n + 1 WHERE i = 1"), // one by one
		"BEGIN;" + each(tables, "DELETE FROM %s WHERE i %% 2 = 0") + again.String() + "COMMIT",
		"BEGIN;" + each(tables, "UPDATE %s SET n = n + 1") + "COMMIT",
		"BEGIN;" + each(tables, "UPDATE %s SET w = NULL WHERE realm_id < 'u'") + "COMMIT",
		"BEGIN;" + each(tables, "UPDATE %s SET w = v WHERE realm_id < 't'") + "COMMIT",
		"BEGIN;" + each(tables, "UPDATE %s SET realm_id = 'm' || i, n = 7 WHERE realm_id LIKE 'u%%'") + "COMMIT",
		"BEGIN;" + each(tables, "DELETE FROM %s WHERE realm_id LIKE 'v%%'") + "COMMIT",
	}
	return h
}

func TestHazardBuiltinTypes(t *testing.T) {
	typesHazard("", builtinTypes).run(t)
}

func TestHazardCustomTypes(t *testing.T) {
	typesHazard(customTypesDDL, customTypes).run(t)
}

// TestHazardRealmKeyTypes routes by each type that a realm key may have.
func TestHazardRealmKeyTypes(t *testing.T) {
	var before, stream strings.Builder
	before.WriteString(`CREATE DOMAIN realm AS varchar(40) CHECK (VALUE <> 'x');`)
	for i, ty := range []typed{
		{"smallint", true, []string{"-32768", "0", "32767"}},
		{"integer", true, []string{"-2147483648", "-1", "2147483647"}},
		{"bigint", true, []string{"-9223372036854775808", "9223372036854775807", "7"}},
		{"uuid", true, []string{"00000000-0000-0000-0000-000000000000", "FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF", "0123456789abcdef0123456789abcdef"}},
		{"text", true, []string{"", " ", "日本🦄", "tab\tnew\nline\\", "Ä", `\N`}},
		{"varchar(9)", true, []string{"a ", "a", "é"}},
		{"character(6)", true, []string{"", "ab", "日本  ", " x"}},
		{"realm", true, []string{"", "ok", "日本"}},
	} {
		table := fmt.Sprintf("k%d", i)
		// Not the first column, and beside a type that only text can carry, so that the copy deals texts too.
		for _, suffix := range []string{"", "_text"} {
			extra := ""
			if suffix != "" {
				extra = ", c regclass DEFAULT 'pg_class'"
			}
			fmt.Fprintf(&before, "CREATE TABLE %s%s (id int NOT NULL, realm_id %s NOT NULL, n int%s, PRIMARY KEY (id, realm_id));\n", table, suffix, ty.typ, extra)
			for k, v := range ty.values {
				fmt.Fprintf(&before, "INSERT INTO %s%s SELECT g, %s, 0 FROM generate_series(1, 3) g;\n", table, suffix, lit(v, ty.typ))
				fmt.Fprintf(&stream, "INSERT INTO %s%s SELECT g, %s, %d FROM generate_series(4, 8) g;\n", table, suffix, lit(v, ty.typ), k)
			}
			fmt.Fprintf(&stream, "UPDATE %s%s SET n = n + 1; UPDATE %[1]s%[2]s SET realm_id = %s, id = id + 100 WHERE realm_id = %s;\n", table, suffix, lit(ty.values[1], ty.typ), lit(ty.values[0], ty.typ))
			fmt.Fprintf(&stream, "DELETE FROM %s%s WHERE id %% 2 = 0;\n", table, suffix)
		}
	}
	hazard{opts: tenant.ReplicationOptions{}, before: before.String(), stream: []string{stream.String()}}.run(t)
}
