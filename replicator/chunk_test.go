package replicator

import (
	"strconv"
	"testing"

	"github.com/rehomedb/rehome/replicator/catalog"
	"github.com/rehomedb/rehome/tenant"
)

// TestKeysAreOrdered gives keys in the order that Postgres sorts them in.
func TestKeysAreOrdered(t *testing.T) {
	t.Parallel()
	for base, keys := range map[uint32][]string{
		oidInt8: {"-9223372036854775808", "-10", "-9", "-1", "0", "1", "9", "10", "9223372036854775807"},
		oidInt2: {"-32768", "-1", "0", "32767"},
		oidUUID: {"00000000-0000-0000-0000-000000000000", "00000000-0000-0000-0000-000000000001", "0a000000-0000-0000-0000-000000000000", "a0000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff"},
	} {
		for i := 1; i < len(keys); i++ {
			a, errA := parseKey(base, []byte(keys[i-1]))
			b, errB := parseKey(base, []byte(keys[i]))
			if errA != nil || errB != nil || !a.less(b) || b.less(a) {
				t.Errorf("%s is not before %s (%v, %v)", keys[i-1], keys[i], errA, errB)
			}
		}
	}
	for _, bad := range []string{"", "x", "9223372036854775808", "1.5", " 1"} {
		if _, err := parseKey(oidInt8, []byte(bad)); err == nil {
			t.Errorf("%q is taken as an integer", bad)
		}
	}
	for _, bad := range []string{"", "1", "g0000000-0000-0000-0000-000000000000"} {
		if _, err := parseKey(oidUUID, []byte(bad)); err == nil {
			t.Errorf("%q is taken as a uuid", bad)
		}
	}
}

// TestMarksOfChunks looks up keys at, below and above the bounds.
func TestMarksOfChunks(t *testing.T) {
	t.Parallel()
	var pieces []piece
	for i, c := range cutAt(chunkOfKeys, "id", []string{"-5", "0", "7"}) {
		pieces = append(pieces, piece{chunk: c, copied: copied{watermark: tenant.LSN(10 * (i + 1))}})
	}
	m, err := newMarks(oidInt8, pieces)
	if err != nil {
		t.Fatal(err)
	}
	for key, want := range map[int]tenant.LSN{-1 << 62: 10, -6: 10, -5: 20, -1: 20, 0: 30, 6: 30, 7: 40, 1 << 62: 40} {
		k, err := parseKey(oidInt8, []byte(strconv.Itoa(key)))
		if got := m.of(k); err != nil || got != want {
			t.Errorf("key %d: watermark %d, want %d (%v)", key, got, want, err)
		}
	}
	for commit, want := range map[tenant.LSN]string{
		9: "false", 10: `("id" < '-5')`, 35: `("id" < '-5') OR ("id" >= '-5' AND "id" < '0') OR ("id" >= '0' AND "id" < '7')`,
	} {
		if got := m.whereBefore(commit); got != want {
			t.Errorf("before %d: %s, want %s", commit, got, want)
		}
	}
	if !m.mixedAt(39) || m.mixedAt(40) || (*marks)(nil).mixedAt(0) {
		t.Error("a table is mixed before its largest watermark only")
	}
}

func TestWhichColumnCuts(t *testing.T) {
	t.Parallel()
	columns := []catalog.Column{{Name: "id", BaseOID: oidInt8}, {Name: "realm", BaseOID: 25}, {Name: "u", BaseOID: oidUUID}}
	for want, tables := range map[string][]catalog.Table{
		"id": {
			{PrimaryKey: []string{"id"}, Identity: catalog.Identity{Kind: "i", Columns: []string{"realm", "id"}}},
			{PrimaryKey: []string{"id", "realm"}, Identity: catalog.Identity{Kind: "f", Columns: []string{"id", "realm", "u"}}},
		},
		"u": {{PrimaryKey: []string{"id"}, Identity: catalog.Identity{Kind: "i", Columns: []string{"u", "realm"}}}},
		"": {
			{PrimaryKey: []string{"realm", "id"}, Identity: catalog.Identity{Kind: "d", Columns: []string{"realm", "id"}}},
			{Identity: catalog.Identity{Kind: "f", Columns: []string{"id", "realm", "u"}}},
			{PrimaryKey: []string{"id"}, Identity: catalog.Identity{Kind: "n"}},
		},
	} {
		for i := range tables {
			tables[i].Columns = columns
			got := ""
			if c := chunkKey(&tables[i]); c != nil {
				got = c.Name
			}
			if got != want {
				t.Errorf("%s case %d: cut by %q", want, i, got)
			}
		}
	}
}
