package verify

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/rehomedb/rehome/tenant"
)

// TestUnits divides tables by ranges of their keys: every row is in exactly one, a fault is found in each, and what was
// found equal is not compared again.
func TestUnits(t *testing.T) {
	t.Parallel()
	const schema = `CREATE TABLE num (id int PRIMARY KEY, v text); CREATE TABLE uid (id uuid PRIMARY KEY, v text); CREATE TABLE txt (id text PRIMARY KEY, v text)`
	const fill = `INSERT INTO num SELECT g - 1500, repeat('x', 100) FROM generate_series(1, 3000) g; INSERT INTO uid SELECT md5(g::text)::uuid, repeat('x', 100) FROM generate_series(1, 3000) g;
		INSERT INTO txt SELECT g, repeat('x', 100) FROM generate_series(1, 3000) g`
	pair := newPair(t, placement("a", "b"), schema, schema, fill, nil)
	pair.in.UnitBytes = 64 << 10
	var parts []Part
	pair.in.OnPart = func(p Part) error {
		parts = append(parts, p)
		return nil
	}
	v := pair.compare()
	if !v.Clean || v.Rows != 9000 || v.FirstLSN != 0 || !v.ComparedAt.Equal(v.FinishedAt) {
		t.Fatalf("%+v", v)
	}
	count := map[string]int{}
	for _, p := range parts {
		count[p.Table]++
	}
	if count["public.num"] < 4 || count["public.uid"] < 4 || count["public.txt"] != 1 {
		t.Fatalf("parts: %v", count)
	}
	done := slices.Clone(parts)
	parts = nil
	pair.in.LSN++
	pair.in.Done = slices.DeleteFunc(slices.Clone(done), func(p Part) bool { return p.Table == "public.num" && p.Number == 2 })
	again := pair.compare()
	if !again.Clean || again.Rows != 9000 || len(parts) != 1 || parts[0].Number != 2 || again.FirstLSN != v.LSN || again.Tables[0].LSN != v.LSN || again.Digest == v.Digest || again.ComparedAt.After(v.FinishedAt.Add(time.Second)) {
		t.Errorf("%+v parts %+v", again, parts)
	}
	// Faults in a range that was found equal are not seen, in others they are.
	for i, want := range map[int]bool{1: true, 2: false} {
		low := done[slices.IndexFunc(done, func(p Part) bool { return p.Table == "public.num" && p.Number == i })].Bounds[i-1]
		run(t, pair.shards["b"], fmt.Sprintf(`UPDATE num SET v = 'y' WHERE id = %s`, low))
		if v := pair.compare(); v.Clean != want {
			t.Errorf("range %d: clean is %v", i, v.Clean)
		}
		run(t, pair.shards["b"], fmt.Sprintf(`UPDATE num SET v = repeat('x', 100) WHERE id = %s`, low))
	}
	// Another placement asks another question.
	pair.in.Placement.Epoch++
	parts = nil
	if v := pair.compare(); !v.Clean || len(parts) != len(done) || v.FirstLSN != 0 {
		t.Errorf("%d parts of %d under another placement: %+v", len(parts), len(done), v)
	}
	pair.in.Done = nil
	for name, sql := range map[string]string{
		"first": `UPDATE %s SET v = 'y' WHERE id = (SELECT id FROM %[1]s ORDER BY id LIMIT 1)`,
		"last":  `DELETE FROM %s WHERE id = (SELECT id FROM %[1]s ORDER BY id DESC LIMIT 1)`,
		"below": `ALTER TABLE %s DROP CONSTRAINT %[1]s_pkey; ALTER TABLE %[1]s ALTER id DROP NOT NULL; INSERT INTO %[1]s VALUES (NULL, 'x')`,
	} {
		for _, table := range []string{"num", "uid"} {
			run(t, pair.shards["a"], fmt.Sprintf(sql, table))
			v := pair.compare()
			k := slices.IndexFunc(v.Tables, func(tv tenant.TableVerification) bool { return tv.Table == "public."+table })
			if v.Clean || v.Tables[k].Equal || len(v.Tables[k].Differences) == 0 {
				t.Errorf("%s of %s: %+v", name, table, v.Tables[k])
			}
		}
	}
}
