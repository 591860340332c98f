package e2e

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/rehomedb/rehome/internal/pgcluster"
	"github.com/rehomedb/rehome/server/api"
	"github.com/rehomedb/rehome/tenant"
)

// writerApp is a tenant's application: every request writes the row that its body names.
type writerApp struct {
	url      string
	served   atomic.Int64
	refused  atomic.Int64
	lastDone atomic.Int64 // unix nanoseconds
}

func newWriterApp(t *testing.T, dsn tenant.DSN) *writerApp {
	t.Helper()
	cfg, err := pgxpool.ParseConfig(dsn.Reveal())
	if err != nil {
		t.Fatal(err)
	}
	cfg.MaxConns = 20
	pool, err := pgxpool.NewWithConfig(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	a := &writerApp{}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		raw, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		id, rest, _ := strings.Cut(string(raw), " ")
		_, err = pool.Exec(context.Background(), `INSERT INTO items VALUES ('r' || ($1::bigint % 7), $1::bigint, $2)`, id, len(rest))
		if err != nil {
			a.refused.Add(1)
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		a.served.Add(1)
		a.lastDone.Store(time.Now().UnixNano())
		_, _ = io.WriteString(w, id)
	}))
	t.Cleanup(srv.Close)
	a.url = srv.URL
	return a
}

// gatewayClients write through gateways, each row once, and note what they were answered.
type gatewayClients struct {
	mu      sync.Mutex
	next    atomic.Int64
	acked   []int64
	failed  []string
	longest time.Duration
}

func (c *gatewayClients) run(ctx context.Context, wg *sync.WaitGroup, url string) {
	wg.Go(func() {
		client := &http.Client{Transport: &http.Transport{}}
		defer client.CloseIdleConnections()
		for ctx.Err() == nil {
			id := c.next.Add(1)
			began := time.Now()
			err := write(client, url, strconv.FormatInt(id, 10)+" "+strings.Repeat("x", int(id%3000)))
			took := time.Since(began)
			c.mu.Lock()
			if err != nil {
				c.failed = append(c.failed, fmt.Sprintf("%d at %s: %v", id, url, err))
			} else {
				c.acked = append(c.acked, id)
			}
			c.longest = max(c.longest, took)
			c.mu.Unlock()
			select { // a person's pace; the machine is shared
			case <-ctx.Done():
			case <-time.After(30 * time.Millisecond):
			}
		}
	})
}

func write(client *http.Client, url, body string) error {
	req, err := http.NewRequestWithContext(context.Background(), http.MethodPost, url+"/write", strings.NewReader(body))
	if err != nil {
		return err
	}
	res, err := client.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = res.Body.Close() }()
	raw, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", res.Status, raw)
	}
	return err
}

func (c *gatewayClients) settled() (acked []int64, failed []string, longest time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.acked, c.failed, c.longest
}

// TestGatewaySwitchesItsClients: clients write through two servers of an installation, by the new database's name and by
// that of the source, whose application they reach until the cutover. In it they wait, and land at the application of the
// new side; in a rollback, at the old one again. None fails, each write is there once.
func TestGatewaySwitchesItsClients(t *testing.T) {
	t.Parallel()
	source := pgcluster.NewDatabase(t, pgcluster.StartT(t, pgcluster.Options{Fsync: true}))
	src := open(t, source)
	execSQL(t, src, `CREATE TABLE items (realm_id text NOT NULL, id bigint NOT NULL, n int, PRIMARY KEY (realm_id, id))`)
	control := pgcluster.NewDatabase(t, shared)
	first := newInstallation(t, control, "REHOME_SERVER_NAME=one")
	second := laterServer(t, first, control, "REHOME_SERVER_NAME=two")
	second.log = first.log
	second.start()
	t.Cleanup(second.kill)
	shard := pgcluster.StartT(t, pgcluster.Options{})
	first.addShards(shard)
	before := newWriterApp(t, source)
	after := newWriterApp(t, shard.DSN("db"))
	first.must("create", "db", "--owner", "owner@example.com", "--upstream", after.url, "--source-upstream", before.url)
	first.must("adopt", "hosted", source.Reveal(), "--owner", "owner@example.com", "--upstream", before.url)

	var clients gatewayClients
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	for i := range 16 {
		clients.run(ctx, &wg, []string{first.url, second.url}[i%2]+[]string{"/db", "/hosted"}[i/2%2])
	}
	first.mustApproved(moveArgs("start-replication", source.Reveal(), first.url+"/db")...)
	first.waitPhase(tenant.InSync)
	first.must("verify")
	if n := after.served.Load() + after.refused.Load(); n > 0 {
		t.Errorf("%d requests came to the new side before the cutover", n)
	}
	first.mustApproved(moveArgs("cutover", source.Reveal(), first.url+"/db")...)
	decided := time.Now()
	landed := after.served.Load()
	eventually(t, "clients go on at the new side", func() bool { return after.served.Load() > landed+200 })
	if last := time.Unix(0, before.lastDone.Load()); last.After(decided) {
		t.Errorf("the old application wrote %s after the cutover", last.Sub(decided))
	}
	cert := mustJSON[tenant.Certificate](first, "certificate", "show")
	t.Logf("cutover: pause %.1f ms; %v", cert.PauseMillis, cert.Steps)
	_, _, longest := clients.settled()
	t.Logf("the longest answer until then took %s", longest)

	// And back: the clients follow.
	first.must("verify")
	first.mustApproved(moveArgs("rollback", source.Reveal(), first.url+"/db")...)
	decided = time.Now()
	landed = before.served.Load()
	eventually(t, "clients go on at the old side", func() bool { return before.served.Load() > landed+200 })
	stop()
	wg.Wait()
	if last := time.Unix(0, after.lastDone.Load()); last.After(decided) {
		t.Errorf("the new application wrote %s after the rollback", last.Sub(decided))
	}

	acked, failed, longest := clients.settled()
	if len(failed) > 0 {
		t.Errorf("%d of %d requests failed; the first: %s", len(failed), len(failed)+len(acked), failed[0])
	}
	if n := before.refused.Load() + after.refused.Load(); n > 0 {
		t.Errorf("the applications were refused %d writes", n)
	}
	if n := scalar[int](t, src, `SELECT count(*)::int FROM unnest($1::bigint[]) i LEFT JOIN (SELECT id, count(*) AS times FROM items GROUP BY id) have ON have.id = i WHERE times IS DISTINCT FROM 1`, acked); n != 0 {
		t.Errorf("%d of %d acknowledged writes are not at the source exactly once", n, len(acked))
	}
	conn := open(t, shard.DSN("db"))
	if n := scalar[int](t, conn, `SELECT count(*)::int FROM unnest($1::bigint[]) i JOIN (SELECT id, count(*) AS times FROM items GROUP BY id) have ON have.id = i WHERE times > 1`, acked); n != 0 {
		t.Errorf("%d of %d acknowledged writes are at the shard more than once", n, len(acked))
	}
	t.Logf("%d writes, %d of them at the new side; the longest answer took %s", len(acked), after.served.Load(), longest)
	for _, d := range mustJSON[[]api.Database](first, "databases") {
		if d.Name == "db" && d.SourceUpstream != before.url {
			t.Errorf("%+v", d)
		}
	}
}
