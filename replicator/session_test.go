package replicator_test

import (
	"testing"
	"time"

	"github.com/rehomedb/rehome/internal/pgcluster"
	"github.com/rehomedb/rehome/replicator"
	"github.com/rehomedb/rehome/tenant"
)

// TestDecodesLittle: a source begins to stream a transaction at 16 MB on our session, if its own setting is not lower. The
// setting is for our session alone.
func TestDecodesLittle(t *testing.T) {
	t.Parallel()
	for own, want := range map[string]string{"64MB": "16MB", "1GB": "16MB", "16MB": "16MB", "300kB": "300kB"} {
		dsn := pgcluster.NewDatabase(t, cluster)
		c := open(t, dsn)
		exec(t, c, `DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET logical_decoding_work_mem = ''`+own+`''', current_database()); END $$`)
		if got := workMem(t, dsn); got != want {
			t.Errorf("a source with %s decodes with %s, want %s", own, got, want)
		}
		if got := scalar[string](t, open(t, dsn), `SHOW logical_decoding_work_mem`); got != own {
			t.Errorf("other sessions of a source with %s have %s", own, got)
		}
	}
}

func workMem(t *testing.T, dsn tenant.DSN) string {
	t.Helper()
	s, err := replicator.ReplicationSession(t.Context(), dsn, 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close(t.Context())
	res, err := s.Exec(t.Context(), `SHOW logical_decoding_work_mem`).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	return string(res[0].Rows[0][0])
}
