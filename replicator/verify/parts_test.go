package verify

import (
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

func TestParts(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		jobs, workers, version int
		pause                  time.Duration
		blocks, want           int64
	}{
		{4, 2, 150000, 0, 100, 10},
		{3, 2, 150000, 0, 100, 1}, // Postgres' own workers do as well
		{2, 0, 150000, 0, 100, 10},
		{1, 2, 150000, 1, 100, 10}, // to rest between them
		{4, 2, 130000, 0, 100, 1},  // each part would read the whole table
		{4, 2, 150000, 0, 19, 1},
		{4, 2, 150000, 0, 0, 1},
	} {
		in := Input{Jobs: tt.jobs, Pause: tt.pause, PartBytes: 10 * 8192}
		if got := partsOf(in, tableSizes{version: tt.version, workers: tt.workers, blockSize: 8192}, tt.blocks); got != tt.want {
			t.Errorf("%+v: %d parts", tt, got)
		}
	}
}

// TestPartsReadPartsOnly wants the ranges to be read as ranges, and every row in exactly one of them.
func TestPartsReadPartsOnly(t *testing.T) {
	t.Parallel()
	if cluster.Version() < tidRangeVersion/10000 {
		return // there, tables are not divided
	}
	pair := newPair(t, placement("a"), schema, otherSchema, fill, realmKeys)
	run(t, pair.source, strings.ReplaceAll(partSettings, "LOCAL", "SESSION"))
	for i := range pair.in.Catalogue.Tables {
		tab := &pair.in.Catalogue.Tables[i]
		if tab.Name.Name != "account" && tab.Name.Name != "visit" {
			continue
		}
		var blocks, rows int64
		if err := pair.source.QueryRow(t.Context(), `SELECT max(pg_relation_size(relid)) / 8192 FROM (SELECT relid FROM pg_partition_tree($1::oid) UNION SELECT $1::oid) p`, tab.OID).Scan(&blocks); err != nil {
			t.Fatal(err)
		}
		c := cut{parts: 3, blocks: blocks / 3}
		for part := range c.parts + 1 {
			where, ok := c.where(part)
			if ok != (part < c.parts) {
				t.Fatalf("part %d: %v", part, ok)
			}
			if !ok {
				continue
			}
			st := newStatementsWithin(tab, false, "", where)
			plan, err := pair.source.Query(t.Context(), "EXPLAIN "+st.classes)
			if err != nil {
				t.Fatal(err)
			}
			lines, err := pgx.CollectRows(plan, pgx.RowTo[string])
			if text := strings.Join(lines, "\n"); err != nil || !strings.Contains(text, "Tid Range Scan") || strings.Contains(text, "Seq Scan") {
				t.Errorf("%v\n%s", err, text)
			}
			d, err := (&side{conn: pair.source}).scan(t.Context(), st.classes)
			if err != nil || d.rows() == 0 {
				t.Errorf("part %d: %d rows: %v", part, d.rows(), err)
			}
			rows += d.rows()
		}
		if want := map[string]int64{"account": 3002, "visit": 900}[tab.Name.Name]; rows != want {
			t.Errorf("%s: %d rows in all parts", tab.Name, rows)
		}
	}
}
