package halfopen_test

import (
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/internal/halfopen"
	"github.com/rehomedb/rehome/internal/pgcluster"
)

// TestBusySessionsOfServersWithoutTLS has a connection that asked for TLS and went on without, as sslmode=prefer does,
// which is the default.
func TestBusySessionsOfServersWithoutTLS(t *testing.T) {
	t.Parallel()
	dsn := pgcluster.NewDatabase(t, cluster)
	cfg, err := pgx.ParseConfig(dsn.Reveal() + "&sslmode=prefer")
	if err != nil {
		t.Fatal(err)
	}
	if cfg.TLSConfig == nil {
		t.Fatal("the first try is without TLS")
	}
	halfopen.Guard(&cfg.Config, patience)
	c, err := pgx.ConnectConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close(t.Context()) }()
	if _, err := c.Exec(t.Context(), "SELECT pg_sleep(2.5)"); err != nil {
		t.Error(err)
	}
}
