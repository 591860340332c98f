package server

import (
	"errors"
	"net/http"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/rehomedb/rehome/internal/pgcluster"
	"github.com/rehomedb/rehome/tenant"
)

func TestInit(t *testing.T) {
	t.Parallel()
	cfg := testConfig(pgcluster.NewDatabase(t, cluster), t.TempDir(), &clock{})
	var te *tenant.Error
	if _, err := Init(t.Context(), cfg, InitRequest{}); !errors.As(err, &te) || te.Code != "missing-admin-email" {
		t.Fatalf("got %v", err)
	}
	first, err := Init(t.Context(), cfg, InitRequest{AdminEmail: admin})
	if err != nil {
		t.Fatal(err)
	}
	if first.Client == nil || first.Client.Secret == "" || first.Client.Scopes[0] != "admin" || len(first.Installation.PublicKey) == 0 {
		t.Fatalf("got %+v", first)
	}
	second, err := Init(t.Context(), cfg, InitRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if second.Created || second.Client != nil || len(second.Clients) != 1 || second.Installation.ID != first.Installation.ID || !second.Installation.PrivateKey.Equal(first.Installation.PrivateKey) {
		t.Fatalf("got %+v", second)
	}
	cfg.Secret = "another secret of the same sufficient length"
	if _, err := Init(t.Context(), cfg, InitRequest{}); !errors.As(err, &te) || te.Code != "wrong-secret" {
		t.Fatalf("got %v", err)
	}
}

func TestTwoInitsAtOnce(t *testing.T) {
	t.Parallel()
	cfg := testConfig(pgcluster.NewDatabase(t, cluster), t.TempDir(), &clock{})
	results := make([]InitResult, 3)
	var g errgroup.Group
	for i := range results {
		g.Go(func() (err error) {
			results[i], err = Init(t.Context(), cfg, InitRequest{AdminEmail: admin})
			return err
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	clients := 0
	for _, r := range results {
		if r.Client != nil {
			clients++
		}
	}
	if clients != 1 {
		t.Fatalf("%d first clients", clients)
	}
}

func TestFirstClientWorks(t *testing.T) {
	t.Parallel()
	b := setup(t)
	r, err := Init(t.Context(), b.cfg, InitRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if r.Client != nil {
		t.Fatal("a second first client")
	}
	b.must(http.MethodGet, "/v1/installation", nil, nil)
}

func TestUnreachableControlDatabase(t *testing.T) {
	t.Parallel()
	var te *tenant.Error
	cfg := testConfig("postgres://u:hidden@127.0.0.1:1/d?connect_timeout=2", t.TempDir(), &clock{})
	if _, err := New(t.Context(), cfg, Deps{}); !errors.As(err, &te) || te.Code != "control-database-unreachable" {
		t.Fatalf("got %v", err)
	}
	cfg.DatabaseURL = "postgres://u:hidden@[/d"
	if _, err := New(t.Context(), cfg, Deps{}); !errors.As(err, &te) || te.Code != "bad-database-url" || te.Error() != te.Message {
		t.Fatalf("got %v", err)
	}
}
