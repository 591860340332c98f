package gate_test

import (
	"errors"
	osexec "os/exec"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/gate"
)

// catalogue is everything that a schema dump and the catalogues show of a database.
func catalogue(t *testing.T, s side) (dump string, objects []string) {
	t.Helper()
	out, err := osexec.Command(filepath.Join(cluster.BinDir(), "pg_dump"), "-s", "-d", s.admin.Reveal()).Output()
	must(t, err)
	rows, err := connect(t, s.admin).Query(t.Context(), `
		SELECT 'schema ' || nspname || coalesce(nspacl::text, '') FROM pg_namespace WHERE nspname NOT LIKE 'pg\_t%'
		UNION ALL SELECT 'trigger ' || tgrelid::regclass || ' ' || tgname || tgenabled::text FROM pg_trigger
		UNION ALL SELECT 'class ' || oid::regclass || ' ' || relhastriggers FROM pg_class WHERE relnamespace NOT IN (SELECT oid FROM pg_namespace WHERE nspname LIKE 'pg\_t%')
		UNION ALL SELECT 'function ' || oid::regprocedure FROM pg_proc WHERE oid >= 16384
		ORDER BY 1`)
	must(t, err)
	objects, err = pgx.CollectRows(rows, pgx.RowTo[string])
	must(t, err)
	// Newer pg_dumps draw a random key per dump.
	return regexp.MustCompile(`(?m)^\\(un)?restrict .*$`).ReplaceAllString(string(out), ""), objects
}

func TestUninstallLeavesNothing(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name    string
		between func(t *testing.T, s side)
		drop    bool
	}{
		{"never cut over", func(t *testing.T, s side) {
			must(t, gate.Heartbeat(t.Context(), s.conn, "r1"))
			must(t, gate.Heartbeat(t.Context(), s.conn, "r1"))
			must(t, gate.WriteMarker(t.Context(), s.conn, "att", gate.MarkCutover))
			must(t, gate.WriteMarker(t.Context(), s.conn, "att", gate.MarkCutover))
		}, false},
		{"an attempt was taken back", func(t *testing.T, s side) {
			a := open(t, s, 1)
			must(t, a.Prelock(t.Context()))
			a.Close(t.Context())
			_, err := gate.Resolve(t.Context(), s.owner, 1)
			must(t, err)
		}, false},
		{"complete, fence dropped", func(t *testing.T, s side) { cutOver(t, s, 1) }, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			s := setup(t, schemaSQL)
			dump, objects := catalogue(t, s)
			for range 2 {
				must(t, gate.InstallSource(t.Context(), s.conn, pass))
			}
			tc.between(t, s)
			for range 2 {
				must(t, gate.UninstallSource(t.Context(), s.conn, tc.drop))
			}
			dumpAfter, objectsAfter := catalogue(t, s)
			if d := cmp.Diff(objects, objectsAfter, cmp.FilterValues(func(a, b string) bool { return true }, cmp.Comparer(sameButHasTriggers))); d != "" {
				t.Errorf("catalogue before and after:\n%s", d)
			}
			if d := cmp.Diff(dump, dumpAfter); d != "" {
				t.Errorf("pg_dump before and after:\n%s", d)
			}
			if !accepts(t, connect(t, s.client)) {
				t.Error("the source does not accept writes")
			}
		})
	}
}

// relhastriggers stays true until a VACUUM notices that the last trigger is gone.
func sameButHasTriggers(a, b string) bool {
	flag := regexp.MustCompile(`^(class .*) (true|false)$`)
	return flag.ReplaceAllString(a, "$1") == flag.ReplaceAllString(b, "$1")
}

func TestTheOldSideStaysClosed(t *testing.T) {
	t.Parallel()
	s := installed(t)
	cutOver(t, s, 1)
	for range 2 {
		must(t, gate.UninstallSource(t.Context(), s.conn, false))
	}
	if got := agrees(t, s); got.Side != gate.SideTarget || got.NewURL != newURL {
		t.Errorf("the gate says %+v", got)
	}
	var n int
	must(t, s.conn.QueryRow(t.Context(), "SELECT count(*) FROM pg_class WHERE relnamespace = 'rehome'::regnamespace AND relname IN ('marker', 'heartbeat')").Scan(&n))
	if n != 0 {
		t.Error("marker or heartbeat is left")
	}
}

func TestASchemaOfOthersStays(t *testing.T) {
	t.Parallel()
	s := setup(t, schemaSQL)
	s.conn.Exec(t.Context(), "CREATE SCHEMA rehome") //nolint:errcheck // seen below
	dump, _ := catalogue(t, s)
	must(t, gate.InstallSource(t.Context(), s.conn, pass))
	must(t, gate.UninstallSource(t.Context(), s.conn, false))
	after, _ := catalogue(t, s)
	if d := cmp.Diff(dump, after); d != "" {
		t.Errorf("pg_dump before and after:\n%s", d)
	}
}

func TestRaise(t *testing.T) {
	t.Parallel()
	s := installed(t)
	got, err := gate.Raise(t.Context(), s.conn, 1, 9)
	must(t, err)
	if got.Epoch != 9 || agrees(t, s).Epoch != 9 {
		t.Errorf("raised to %+v", got)
	}
	if _, err := gate.Raise(t.Context(), s.conn, 1, 12); err == nil {
		t.Error("a stale raise hit")
	}
}

// Two replications of one source share its gate: cancelling one must not take the other's gate, marker and heartbeat.
func TestUninstallLeavesAnothersGate(t *testing.T) {
	t.Parallel()
	s := setup(t, schemaSQL)
	must(t, gate.InstallSource(t.Context(), s.conn, pass))
	exec(t, s.conn, "CREATE PUBLICATION rehome_other FOR TABLE rehome.marker, rehome.heartbeat")
	must(t, gate.UninstallSource(t.Context(), s.conn, false))
	_, err := gate.ReadGate(t.Context(), s.conn)
	must(t, err)
	must(t, gate.WriteMarker(t.Context(), s.conn, "att", gate.MarkCutover))
	exec(t, s.conn, "DROP PUBLICATION rehome_other")
	must(t, gate.UninstallSource(t.Context(), s.conn, false))
	if _, err := gate.ReadGate(t.Context(), s.conn); !errors.Is(err, gate.ErrNoGate) {
		t.Errorf("the last one left the gate: %v", err)
	}
}
