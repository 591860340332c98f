package replicator_test

import (
	"testing"

	"github.com/rehomedb/rehome/internal/pgcluster"
	"github.com/rehomedb/rehome/replicator"
	"github.com/rehomedb/rehome/tenant"
)

// TestDecodesLittle: a source begins to stream a transaction at 16 MB on our session, if its own setting is not lower. The
// setting is for our session alone, and left alone where nothing may run ahead.
func TestDecodesLittle(t *testing.T) {
	t.Parallel()
	for own, want := range map[string]string{"64MB": "16MB", "1GB": "16MB", "16MB": "16MB", "300kB": "300kB"} {
		dsn := decodesWith(t, own)
		if got := workMem(t, replicator.Config{Source: dsn}, false); got != want {
			t.Errorf("a source with %s decodes with %s, want %s", own, got, want)
		}
		if got := scalar[string](t, open(t, dsn), `SHOW logical_decoding_work_mem`); got != own {
			t.Errorf("other sessions of a source with %s have %s", own, got)
		}
	}
	dsn := decodesWith(t, "64MB")
	for what, cfg := range map[string]replicator.Config{
		"by the replication": {Options: tenant.ReplicationOptions{NoRunAhead: true}},
		"by the engine":      {AheadFrom: -1},
		"on the way back":    {},
	} {
		cfg.Source = dsn
		if got := workMem(t, cfg, what == "on the way back"); got != "64MB" {
			t.Errorf("a source with 64MB from which nothing runs ahead, %s, decodes with %s", what, got)
		}
	}
}

// decodesWith makes a database whose sessions have a setting of the memory.
func decodesWith(t *testing.T, own string) tenant.DSN {
	t.Helper()
	dsn := pgcluster.NewDatabase(t, cluster)
	exec(t, open(t, dsn), `DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET logical_decoding_work_mem = ''`+own+`''', current_database()); END $$`)
	return dsn
}

// workMem is what the walsender session of a replication has, or that of its way back.
func workMem(t *testing.T, cfg replicator.Config, back bool) string {
	t.Helper()
	cfg.Replication, cfg.Slot = "memory", "memory"
	s, err := replicator.Walsender(t.Context(), cfg, back)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close(t.Context()) }()
	res, err := s.Exec(t.Context(), `SHOW logical_decoding_work_mem`).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	return string(res[0].Rows[0][0])
}
