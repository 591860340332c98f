package cutover_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/rehomedb/rehome/gate"
	"github.com/rehomedb/rehome/server/cutover"
	"github.com/rehomedb/rehome/tenant"
)

// A change of the schema that was made on one side only refuses a rollback, and is named.
func TestCatalogueCheckOfARollback(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 2)
	ctx := t.Context()
	source := connect(t, w.job.Source)
	mood := `CREATE TYPE mood AS ENUM ('bad', 'good')`
	exec(t, source, mood)
	for _, s := range w.job.Shards {
		conn := connect(t, s.DSN)
		_, err := gate.Follow(ctx, conn, gate.State{Epoch: 2, Side: gate.SideTarget})
		must(t, err)
		exec(t, conn, mood)
	}
	if list, err := cutover.CheckCatalogues(ctx, w.job); err != nil || len(list) > 0 {
		t.Fatalf("nothing differs: %v %+v", err, list)
	}
	one, both := "one", "both"
	for _, tt := range []struct {
		name, where, do, undo string
		severity              tenant.Severity
		want                  []string // in the finding
	}{
		{"column", one, "ALTER TABLE entries ADD COLUMN note text", "ALTER TABLE entries DROP COLUMN note", tenant.Blocking, []string{"public.entries.note", "column-extra", "shard eu-1 has \"text\""}},
		{"type", both, "ALTER TABLE entries ALTER COLUMN realm_id TYPE varchar(40)", "ALTER TABLE entries ALTER COLUMN realm_id TYPE text", tenant.Blocking, []string{"column-type", "shard eu-1, eu-2"}},
		{"constraint", one, "ALTER TABLE entries ADD CONSTRAINT short CHECK (length(id) < 99)", "ALTER TABLE entries DROP CONSTRAINT short", tenant.Blocking, []string{"constraint-extra"}},
		{"trigger", one, "CREATE TRIGGER t BEFORE UPDATE ON entries FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()", "DROP TRIGGER t ON entries", tenant.Blocking, []string{"trigger-extra"}},
		{"table gone", one, "ALTER TABLE entries RENAME TO elsewhere", "ALTER TABLE elsewhere RENAME TO entries", tenant.Blocking, []string{"table-missing"}},
		{"new table", both, "CREATE TABLE news (id int)", "DROP TABLE news", tenant.Warning, []string{"table-not-replicated:public.news", "shard eu-1, eu-2"}},
		{"new partition", both, "CREATE TABLE orders_2027 PARTITION OF orders FOR VALUES FROM ('2027-01-01') TO ('2028-01-01')", "DROP TABLE orders_2027", tenant.Blocking, []string{"partition-extra", "2028-01-01"}},
		{"partition detached", one, "ALTER TABLE orders DETACH PARTITION orders_2026", "ALTER TABLE orders ATTACH PARTITION orders_2026 FOR VALUES FROM ('2026-01-01') TO ('2027-01-01')", tenant.Warning, []string{"partition-missing:public.orders_2026"}},
		{"label", one, "ALTER TYPE mood ADD VALUE 'fine'", "DROP TYPE mood; " + mood, tenant.Blocking, []string{"enum-labels", "'fine'"}},
		{"table gone from the source", "source", "ALTER TABLE entries RENAME TO elsewhere", "ALTER TABLE elsewhere RENAME TO entries", tenant.Blocking, []string{"public.entries", "not at the source any more"}},
		{"column gone from the source", "source", "ALTER TABLE entries RENAME COLUMN realm_id TO r", "ALTER TABLE entries RENAME COLUMN r TO realm_id", tenant.Blocking, []string{"column-extra"}},
	} {
		run := func(sql string) {
			if tt.where == "source" {
				exec(t, source, sql)
				return
			}
			exec(t, connect(t, w.job.Shards[0].DSN), sql)
			if tt.where == both {
				exec(t, connect(t, w.job.Shards[1].DSN), sql)
			}
		}
		run(tt.do)
		list, err := cutover.CheckCatalogues(ctx, w.job)
		run(tt.undo)
		must(t, err)
		text := fmt.Sprint(list)
		for _, f := range list {
			text += " " + f.ID()
		}
		for _, s := range tt.want {
			if !strings.Contains(text, s) {
				t.Errorf("%s: want %s in %s", tt.name, s, text)
			}
		}
		if len(list) == 0 || list[0].Severity != tt.severity && !tenant.Blocks(list) || tt.severity == tenant.Warning && list[0].Severity != tenant.Warning {
			t.Errorf("%s: want %s: %+v", tt.name, tt.severity, list)
		}
	}
	if list, err := cutover.CheckCatalogues(ctx, w.job); err != nil || len(list) > 0 {
		t.Fatalf("nothing differs any more: %v %+v", err, list)
	}
}
