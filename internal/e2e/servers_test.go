package e2e

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/internal/pgcluster"
	"github.com/rehomedb/rehome/internal/torture"
	"github.com/rehomedb/rehome/tenant"
)

// twoServers is an installation of two servers, a and b, with a move between a source and two shards. Each server has a
// role of its own at the control database, so that what it writes there can be told apart.
type twoServers struct {
	t       *testing.T
	net     *torture.Network
	a, b    *node
	control *pgx.Conn
	src     *pgx.Conn
	shards  map[string]*pgx.Conn // the database on each
	dsns    []*pgcluster.Cluster
	role    string // of server a
	next    atomic.Int64
	args    []string
}

func newTwoServers(t *testing.T, at *pgcluster.Cluster, ddl string) *twoServers {
	t.Helper()
	w := &twoServers{t: t, net: torture.NewNetwork(), shards: map[string]*pgx.Conn{}, role: "server_a_" + strings.ToLower(rand.Text()[:8])}
	t.Cleanup(w.net.Close)
	source := pgcluster.NewDatabase(t, at)
	w.src = open(t, source)
	execSQL(t, w.src, ddl)
	control := pgcluster.NewDatabase(t, shared)
	w.control = open(t, control)
	const password = "a password of the tests"
	execSQL(t, w.control, `CREATE ROLE `+tenant.QuoteIdent(w.role)+` SUPERUSER LOGIN PASSWORD `+tenant.QuoteLiteral(password))
	first := newInstallation(t, shared.DSNAs(w.role, password, strings.TrimPrefix(scalar[string](t, w.control, `SELECT current_database()`), "/")))
	first.kill()
	_ = first.log.Close()
	dir := t.TempDir()
	w.a = keepNode(t, "a", dir, first)
	w.a.ready()
	from, err := w.net.Link("source", source)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		w.dsns = append(w.dsns, pgcluster.StartT(t, pgcluster.Options{}))
	}
	w.a.addShards(w.dsns...)
	w.a.must("create", "db", "--owner", "owner@example.com")
	w.args = moveArgs("start-replication", from.Reveal(), w.a.url+"/db")
	w.b = keepNode(t, "b", dir, laterServer(t, first, control))
	return w
}

// begin starts the replication. b is started only when a owns it.
func (w *twoServers) begin() {
	w.t.Helper()
	w.b.takeDown(syscall.SIGKILL, patience)
	w.a.mustApproved(w.args...)
	w.owned("a")
	w.b.letUp()
	w.b.ready()
}

func (w *twoServers) openShards() {
	for i, c := range w.dsns {
		w.shards[fmt.Sprint("s", i+1)] = open(w.t, c.DSN("db"))
	}
}

// owned waits until a server has the lease, and returns its epoch.
func (w *twoServers) owned(server string) int64 {
	w.t.Helper()
	var epoch int64
	eventually(w.t, server+" has the lease", func() bool {
		err := w.control.QueryRow(context.Background(), `SELECT epoch FROM rehome_control.leases WHERE resource LIKE 'replication:%' AND holder = $1 AND expires_at > now()`, server).Scan(&epoch)
		return err == nil
	})
	return epoch
}

// arrives writes rows in many realms at the source and waits until the shards have them, each once.
func (w *twoServers) arrives() {
	w.t.Helper()
	id := w.next.Add(1) * 1000
	execSQL(w.t, w.src, `INSERT INTO items SELECT 'r' || i, $1::bigint + i, 0 FROM generate_series(0, 19) i`, id)
	eventually(w.t, "the rows arrive", func() bool {
		n := 0
		for _, c := range w.shards {
			n += scalar[int](w.t, c, `SELECT count(*)::int FROM items WHERE id BETWEEN $1 AND $1 + 19`, id)
		}
		if n > 20 {
			w.t.Fatalf("%d rows instead of 20", n)
		}
		return n == 20
	})
}

// only asserts that from its first progress row on, only this epoch has written at each shard.
func (w *twoServers) only(epoch int64) {
	w.t.Helper()
	for name, c := range w.shards {
		if n := scalar[int](w.t, c, `SELECT count(*)::int FROM rehome.progress WHERE epoch = $1`, epoch); n == 0 {
			w.t.Errorf("%s: no progress row of epoch %d", name, epoch)
		}
		if n := scalar[int](w.t, c, `SELECT count(*)::int FROM rehome.progress WHERE epoch <> $1 AND seq > (SELECT min(seq) FROM rehome.progress WHERE epoch = $1)`, epoch); n != 0 {
			w.t.Errorf("%s: %d progress rows of another epoch behind the first of epoch %d", name, n, epoch)
		}
	}
}

// watchWrites keeps what server a writes about replications in the control database from now on.
func (w *twoServers) watchWrites() {
	w.t.Helper()
	// Any server may deliver events, which updates them.
	execSQL(w.t, w.control, `CREATE TABLE IF NOT EXISTS public.written (tbl text, what text, at timestamptz DEFAULT clock_timestamp());
		CREATE OR REPLACE FUNCTION public.note_write() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
			IF session_user LIKE 'server_a_%' AND NOT (TG_TABLE_NAME = 'events' AND TG_OP = 'UPDATE') THEN INSERT INTO public.written VALUES (TG_TABLE_NAME, TG_OP || ' ' || left(to_jsonb(NEW)::text, 300)); END IF;
			RETURN NULL; END $$`)
	for _, table := range []string{"replications", "replication_steps", "replication_chunks", "replication_commands", "source_changes", "events", "verifications"} {
		execSQL(w.t, w.control, `DO $$ BEGIN IF to_regclass('rehome_control.`+table+`') IS NOT NULL THEN
			CREATE TRIGGER note_write AFTER INSERT OR UPDATE ON rehome_control.`+table+` FOR EACH ROW EXECUTE FUNCTION public.note_write(); END IF; END $$`)
	}
}

// written is what server a wrote since watchWrites.
func (w *twoServers) written() []string {
	w.t.Helper()
	rows, err := w.control.Query(w.t.Context(), `SELECT tbl || ': ' || what FROM public.written ORDER BY at`)
	if err != nil {
		w.t.Fatal(err)
	}
	out, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		w.t.Fatal(err)
	}
	return out
}

// gaveUp waits until a has noticed that it is not the owner any more.
func (w *twoServers) gaveUp(since int64) {
	w.t.Helper()
	eventually(w.t, "a gives up", func() bool { return strings.Contains(w.a.logSince(since), "another server took over") })
	role := w.role
	eventually(w.t, "a has no session left at the shards that could write", func() bool {
		for _, c := range w.shards {
			// Both servers come as the same role; a lane of each would be two.
			if scalar[int](w.t, c, `SELECT count(*)::int FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'rehome-lane-%'`) > 1 {
				return false
			}
		}
		return role != ""
	})
}

func (w *twoServers) clean(by *node) {
	w.t.Helper()
	by.waitPhase(tenant.InSync)
	v := mustJSON[tenant.Verification](by.installation, "verify")
	if !v.Clean || v.Rows == 0 {
		w.t.Errorf("verification: %+v", v)
	}
}

const twoServersDDL = `CREATE TABLE items (realm_id text NOT NULL, id bigint NOT NULL, n int, PRIMARY KEY (realm_id, id));
	INSERT INTO items SELECT 'r' || (g % 20), -g, 0 FROM generate_series(1, 500) g;`

// TestOwnerIsKilled also asks the server that is not the owner, which leaves the work to the owner.
func TestOwnerIsKilled(t *testing.T) {
	t.Parallel()
	w := newTwoServers(t, shared, twoServersDDL)
	w.begin()
	w.a.waitPhase(tenant.InSync)
	w.openShards()
	w.arrives()
	w.a.takeDown(syscall.SIGKILL, patience)
	killed := time.Now()
	execSQL(t, w.src, `INSERT INTO items VALUES ('r1', 1, 1)`)
	epoch := w.owned("b")
	took := time.Since(killed)
	w.arrives()
	t.Logf("b has the lease %s after a was killed, and streams %s after it", took.Round(10*time.Millisecond), time.Since(killed).Round(10*time.Millisecond))
	// The lease lasts 10 s and is looked at every second; the rest is for a machine with other things to do.
	if took > tortureLease+8*time.Second {
		t.Errorf("b needed %s to take over", took)
	}
	w.only(epoch)
	w.a.letUp()
	w.a.ready()
	w.clean(w.a) // asked of a, done by b
	if now := w.owned("b"); now != epoch {
		t.Errorf("a question to the other server moved the lease: epoch %d, it was %d", now, epoch)
	}
	if said := w.a.logSince(0); strings.Contains(said[strings.LastIndex(said, `"serving"`):], "working on the replication") {
		t.Error("a worked on what b owns")
	}
}

// TestOwnerSleeps stops the owner for longer than its lease, while it streams, and wakes it up when another has taken
// over and gone on.
func TestOwnerSleeps(t *testing.T) {
	t.Parallel()
	w := newTwoServers(t, shared, twoServersDDL)
	w.begin()
	w.a.waitPhase(tenant.InSync)
	w.openShards()
	w.arrives()
	w.a.signal(syscall.SIGSTOP)
	// Read by a's session already, or waiting in its socket: it would apply them when it wakes up.
	execSQL(t, w.src, `INSERT INTO items VALUES ('r1', 1, 1), ('r2', 2, 1), ('r3', 3, 1)`)
	epoch := w.owned("b")
	w.arrives()
	w.watchWrites()
	slept := fileSize(w.a.log)
	w.a.signal(syscall.SIGCONT)
	for range 20 {
		w.arrives()
	}
	w.gaveUp(slept)
	w.arrives()
	w.only(epoch)
	if now := w.owned("b"); now != epoch {
		t.Errorf("the lease moved when a woke up: epoch %d, it was %d", now, epoch)
	}
	for _, what := range w.written() {
		t.Errorf("a former owner wrote %s", what)
	}
	w.clean(w.b)
}

// TestOwnerSleepsInTheCopy does the same while tables are copied.
func TestOwnerSleepsInTheCopy(t *testing.T) {
	if os.Getenv("REHOME_LONG") == "" {
		return // make long
	}
	t.Parallel()
	// Not the shared cluster: while a backend cannot send to a client that is stopped, no database can be dropped there.
	w := newTwoServers(t, pgcluster.StartT(t, pgcluster.Options{}), `CREATE TABLE items (realm_id text NOT NULL, id bigint NOT NULL, n int, pad text, PRIMARY KEY (realm_id, id));
		INSERT INTO items SELECT 'r' || (g % 20), -g, 0, repeat(md5(g::text), 4) FROM generate_series(1, 60000) g;`)
	w.net.Usually("source", 0, 600_000) // about 15 s for the table
	w.begin()
	var shard *pgx.Conn
	eventually(t, "it copies", func() bool {
		if shard == nil {
			c, err := pgx.Connect(t.Context(), w.dsns[1].DSN("db").Reveal())
			if err != nil {
				return false
			}
			shard = c
			t.Cleanup(func() { _ = c.Close(context.Background()) })
		}
		// In the middle of it, with the lock that fences it and the table's.
		return scalar[bool](t, shard, `SELECT EXISTS (SELECT FROM pg_stat_activity WHERE application_name LIKE 'rehome-copy-%' AND query ILIKE 'copy%' AND xact_start IS NOT NULL)`)
	})
	w.a.signal(syscall.SIGSTOP)
	epoch := w.owned("b")
	w.net.Usually("source", 0, 0)
	w.b.waitPhase(tenant.InSync)
	w.openShards()
	w.arrives()
	w.watchWrites()
	slept := fileSize(w.a.log)
	w.a.signal(syscall.SIGCONT)
	w.gaveUp(slept)
	w.arrives()
	w.only(epoch)
	for _, what := range w.written() {
		t.Errorf("a former owner wrote %s", what)
	}
	w.clean(w.b)
}

// TestOwnerSleepsInATransaction stops the owner while its lane is in the middle of a transaction and holds the locks that
// fence it: whoever takes over ends that session.
func TestOwnerSleepsInATransaction(t *testing.T) {
	if os.Getenv("REHOME_LONG") == "" {
		return // make long
	}
	t.Parallel()
	w := newTwoServers(t, shared, twoServersDDL)
	w.begin()
	w.a.waitPhase(tenant.InSync)
	w.openShards()
	execSQL(t, w.src, `INSERT INTO items SELECT 'r' || i, i, 0 FROM generate_series(0, 19) i`)
	w.arrives()
	// Somebody holds a row at a shard that the lane wants.
	name, realm := "", ""
	for n, c := range w.shards {
		if err := c.QueryRow(t.Context(), `SELECT realm_id FROM items WHERE id >= 0 ORDER BY id LIMIT 1`).Scan(&realm); err == nil {
			name = n
			break
		}
	}
	holder := open(t, w.dsns[name[1]-'1'].DSN("db"))
	execSQL(t, holder, `BEGIN`)
	execSQL(t, holder, `SELECT 1 FROM items WHERE realm_id = $1 FOR UPDATE`, realm)
	execSQL(t, w.src, `UPDATE items SET n = n + 1`)
	var lane int
	eventually(t, "the lane waits in the middle of its transaction", func() bool {
		return w.shards[name].QueryRow(t.Context(), `SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'rehome-lane-%' AND wait_event_type = 'Lock' AND xact_start IS NOT NULL`).Scan(&lane) == nil
	})
	w.a.signal(syscall.SIGSTOP)
	epoch := w.owned("b")
	eventually(t, "the former owner's session is ended", func() bool {
		return scalar[int](t, w.shards[name], `SELECT count(*)::int FROM pg_stat_activity WHERE pid = $1`, lane) == 0
	})
	execSQL(t, holder, `ROLLBACK`)
	w.arrives()
	slept := fileSize(w.a.log)
	w.a.signal(syscall.SIGCONT)
	w.gaveUp(slept)
	w.arrives()
	w.only(epoch)
	for n, c := range w.shards {
		if wrong := scalar[int](t, c, `SELECT count(*)::int FROM items WHERE id < 1000 AND n <> 1`); wrong != 0 {
			t.Errorf("%s: the update hit %d rows not once", n, wrong)
		}
	}
	w.clean(w.b)
}
