package main

import (
	"fmt"
	"strings"
)

// Sizes of datasets B and C at scale 1.
const (
	smallRealms = 5000
	rowsPerReal = 200
	wideRows    = 20_000
	wideColumns = 100
	wideRealms  = 50
)

// DatasetB is many small realms in one table, whose rows lie mixed.
func DatasetB() *Dataset {
	return &Dataset{
		Name:   "B",
		Title:  "5,000 realms of 200 rows each in one table, mixed; primary key (realm, id) and 1 further index",
		Tables: []string{"items"},
		Realm:  []string{"--realm-key", "realm_id"},
		SQL: func(scale float64) []string {
			realms := max(int(smallRealms*scale), 50)
			return []string{
				`CREATE TABLE items (realm_id text NOT NULL, id bigint NOT NULL, title text, price numeric(10,2), done boolean, created_at timestamptz)`,
				fmt.Sprintf(`INSERT INTO items SELECT 'realm-' || (g %% %d), g, 'item ' || md5(g::text), (g %% 100000) / 100.0, g %% 3 = 0,
					timestamptz '2026-01-01 00:00:00Z' + g * interval '11 seconds' FROM generate_series(1, %d) g`, realms, realms*rowsPerReal),
				`ALTER TABLE items ADD PRIMARY KEY (realm_id, id)`,
				`CREATE INDEX items_created ON items (realm_id, created_at)`,
			}
		},
	}
}

// wideTypes are the types of the narrow columns, in turn, with a value made of the row's number g and the column's number.
var wideTypes = [...]struct{ name, value string }{
	{"int", "(g * %d %% 1000000)::int"},
	{"bigint", "g::bigint * %d"},
	{"text", "'value ' || (g + %d)"},
	{"numeric", "(g * %d %% 1000000) / 100.0"},
	{"timestamptz", "timestamptz '2026-01-01 00:00:00Z' + (g + %d) * interval '1 minute'"},
	{"boolean", "(g + %d) %% 3 = 0"},
	{"uuid", "md5((g + %d)::text)::uuid"},
	{"float8", "(g * %d)::float8 / 7"},
	{"date", "date '2026-01-01' + (g + %d) %% 10000"},
	{"smallint", "((g + %d) %% 30000)::smallint"},
}

// DatasetC is wide: 100 columns, of which a row has every other one NULL, a text that compresses and a bytea that is stored as it
// is, of 2 to 50 KB each, most of them small.
func DatasetC() *Dataset {
	return &Dataset{
		Name:   "C",
		Title:  "20,000 rows of 100 columns, half of them NULL, with a text and a bytea of 2 to 50 KB each (TOAST); primary key (realm, id) and 1 further index",
		Tables: []string{"wide"},
		Realm:  []string{"--realm-key", "realm_id"},
		SQL: func(scale float64) []string {
			var columns, values strings.Builder
			for i := 1; i <= wideColumns-4; i++ { // beside realm_id, id, body and data
				t := wideTypes[i%len(wideTypes)]
				fmt.Fprintf(&columns, ", c%d %s", i, t.name)
				fmt.Fprintf(&values, ", CASE WHEN (g + %d) %% 2 = 0 THEN "+t.value+" END", i, i)
			}
			size := func(seed int) string {
				return fmt.Sprintf("(2000 + 48000 * power((hashint8extended(g, %d) & 1048575) / 1048576.0::float8, 3))", seed)
			}
			return []string{
				`CREATE TABLE wide (realm_id text NOT NULL, id bigint NOT NULL` + columns.String() + `, body text, data bytea)`,
				`ALTER TABLE wide ALTER data SET STORAGE EXTERNAL`,
				fmt.Sprintf(`INSERT INTO wide SELECT 'realm-' || (g %% %d), g%s, repeat(md5(g::text) || ' and some words ', (%s / 48)::int), decode(repeat(md5(g::text), (%s / 16)::int), 'hex')
					FROM generate_series(1, %d) g`, wideRealms, values.String(), size(1), size(2), max(int(wideRows*scale), 50)),
				`ALTER TABLE wide ADD PRIMARY KEY (realm_id, id)`,
				`CREATE INDEX wide_c1 ON wide (c1)`,
			}
		},
	}
}
