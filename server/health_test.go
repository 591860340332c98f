package server

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

type workerFunc func(context.Context) error

func (f workerFunc) Run(ctx context.Context) error { return f(ctx) }

func TestProbesAndMetrics(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for _, path := range []string{"/readyz", "/healthz"} {
		b.eventually("NATS is up", func() bool { _, body := b.get(path); return strings.Contains(body, `"nats":"up"`) })
		status, body := b.get(path)
		var h health
		if err := json.Unmarshal([]byte(body), &h); err != nil || status != 200 || !h.Ready || h.ControlDatabase != "up" {
			t.Errorf("%s: %d %s", path, status, body)
		}
	}
	b.must("GET", "/v1/installation", nil, nil)
	_, body := b.get("/metrics")
	for _, want := range []string{`rehome_api_requests_total{method="GET",status="200"}`, "rehome_nats_up 1", "rehome_control_connections ", "go_goroutines"} {
		if !strings.Contains(body, want) {
			t.Errorf("no %s", want)
		}
	}
	b.exec(`INSERT INTO rehome_control.databases (name, kind) VALUES ('mine','sharded')`)
	b.exec(`INSERT INTO rehome_control.replications (id, database, source_dsn_sealed, source_label, target_url, options, state, phase, slot_name, publication, placement_epoch, progress)
		VALUES ('abc','mine','','','','{}','{}','in_sync','','',1,'{"lag_bytes":77,"lag_ms":1500,"slot_wal_bytes":9,"throttled":"x","care":{"slot_lost_seconds":60,"wal_bytes_per_second":5}}')`)
	_, body = b.get("/metrics")
	for _, want := range []string{
		`rehome_replication_lag_bytes{database="mine",phase="in_sync",replication="abc"} 77`, `rehome_replication_lag_seconds{database="mine",phase="in_sync",replication="abc"} 1.5`,
		`rehome_replication_throttled{database="mine",phase="in_sync",replication="abc"} 1`, `rehome_replication_slot_lost_seconds{database="mine",phase="in_sync",replication="abc"} 60`,
	} {
		if !strings.Contains(body, want) {
			t.Errorf("no %s", want)
		}
	}
	b.beginDrain()
	if status, body := b.get("/readyz"); status != 503 || !strings.Contains(body, `"draining":true`) {
		t.Errorf("while draining: %d %s", status, body)
	}
}

// TestSlowControlDatabaseIsNotDown: one that does not answer a probe in time is there as long as it renews the gateway's lease,
// and no longer.
func TestSlowControlDatabaseIsNotDown(t *testing.T) {
	t.Parallel()
	b := setup(t)
	late, cancel := context.WithDeadline(t.Context(), time.Now())
	defer cancel()
	probe := func() (int, health) {
		rec := httptest.NewRecorder()
		b.readyz(rec, httptest.NewRequestWithContext(late, http.MethodGet, "/readyz", nil))
		var h health
		if err := json.Unmarshal(rec.Body.Bytes(), &h); err != nil {
			t.Fatal(err)
		}
		return rec.Code, h
	}
	b.eventually("it is ready", func() bool {
		status, h := probe()
		return status == http.StatusOK && h.Ready && h.ControlDatabase == "up"
	})
	if err := b.stop(); err != nil {
		t.Fatal(err)
	}
	b.eventually("the lease is over", func() bool {
		status, h := probe()
		return status == http.StatusServiceUnavailable && h.ControlDatabase == "down"
	})
}

func TestWorkerIsRunAndItsFailureEndsTheServer(t *testing.T) {
	t.Parallel()
	fail := make(chan error)
	b := setup(t, Deps{NewWorker: func(p Parts) (Worker, error) {
		if p.Pool == nil || p.Catalogue == nil || p.Gateway == nil || p.Log == nil || p.Installation.PrivateKey == nil || p.Server == "" {
			t.Error("a part is missing")
		}
		return workerFunc(func(ctx context.Context) error {
			select {
			case err := <-fail:
				return err
			case <-ctx.Done():
				return nil
			}
		}), nil
	}})
	broken := errors.New("broken")
	fail <- broken
	b.eventually("the server ends", func() bool { status, _ := b.get("/livez"); return status == 0 })
	if err := b.stop(); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
	b.failed()
}

// failed makes the clean-up accept that the server ended with an error.
func (b *bundle) failed() { b.broke = true }
