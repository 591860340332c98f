package cli_test

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	pquerna "github.com/pquerna/otp"
	"github.com/pquerna/otp/totp"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/rehomedb/rehome/internal/pgcluster"
	"github.com/rehomedb/rehome/otp"
	"github.com/rehomedb/rehome/server/api"
)

// startWithin bounds what a server needs to migrate and listen on a busy machine.
const startWithin = 60 * time.Second

// The scripts of testdata/server run the whole program: `rehome server` on a real control database, with the codes read
// from its mailbox, and shards of a real cluster.
func TestServer(t *testing.T) {
	t.Parallel()
	testscript.Run(t, testscript.Params{
		Dir: "testdata/server",
		Setup: func(e *testscript.Env) error {
			tb, ok := e.T().(testing.TB)
			if !ok {
				return errors.New("the script's T is no testing.TB")
			}
			e.Setenv("REHOME_DATABASE_URL", pgcluster.NewDatabase(tb, shared).Reveal())
			e.Setenv("REHOME_SECRET", operator)
			e.Setenv("REHOME_LISTEN", "127.0.0.1:0")
			e.Setenv("REHOME_EMAIL_URL", "file://"+filepath.Join(e.WorkDir, "mail"))
			e.Setenv("SHARD1", shared.DSN("postgres").Reveal())
			e.Setenv("SOURCE", pgcluster.NewDatabase(tb, shared).Reveal())
			e.Setenv("TERM", "xterm")
			// Takes whatever comes to /ok, and nothing else.
			receiver := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path != "/ok" {
					http.Error(w, "nothing here", http.StatusNotFound)
				}
			}))
			tb.Cleanup(receiver.Close)
			e.Setenv("RECEIVER", receiver.URL)
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits": exits, "ready": ready, "code": code, "sql": sql, "freeport": freePort, "appcode": appCode, "hold": hold, "fencing": fencing, "begun": begun, "knocks": knocks, "release": release, "shard": shardOf, "ids": ids, "arrived": arrived,
		},
	})
}

// freeport: sets REHOME_LISTEN and REHOME_URL to an address that nobody listens on.
func freePort(ts *testscript.TestScript, _ bool, _ []string) {
	ln, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", "127.0.0.1:0")
	ts.Check(err)
	addr := ln.Addr().String()
	ts.Check(ln.Close())
	ts.Setenv("REHOME_LISTEN", addr)
	ts.Setenv("REHOME_URL", "http://"+addr)
}

// ready: waits until the server answers /readyz.
func ready(ts *testscript.TestScript, _ bool, _ []string) {
	ctx, cancel := context.WithTimeout(context.Background(), startWithin)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, ts.Getenv("REHOME_URL")+"/readyz", nil)
		ts.Check(err)
		if resp, err := http.DefaultClient.Do(req); err == nil {
			_ = resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return
			}
		}
		select {
		case <-ctx.Done():
			ts.Fatalf("the server is not ready within %s", startWithin)
		case <-tick.C:
		}
	}
}

// code N: waits for the Nth mail that carries a code, and puts it into $CODE, and its challenge into $CHALLENGE.
func code(ts *testscript.TestScript, _ bool, args []string) {
	n, err := strconv.Atoi(args[0])
	ts.Check(err)
	ctx, cancel := context.WithTimeout(context.Background(), startWithin)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		mails, err := otp.ReadMailbox(ts.MkAbs("mail"))
		ts.Check(err)
		mails = slices.DeleteFunc(mails, func(m otp.Mail) bool { return m.Code == "" })
		if len(mails) >= n {
			ts.Setenv("CODE", mails[n-1].Code)
			ts.Setenv("CHALLENGE", mails[n-1].Challenge)
			return
		}
		select {
		case <-ctx.Done():
			ts.Fatalf("there are %d mails with a code", len(mails))
		case <-tick.C:
		}
	}
}

// appcode FILE AHEAD: puts the code that an authenticator app shows after AHEAD into $CODE. FILE is the JSON of
// `totp enroll`.
func appCode(ts *testscript.TestScript, _ bool, args []string) {
	var e api.TOTPEnrolment
	ts.Check(json.Unmarshal([]byte(ts.ReadFile(args[0])), &e))
	key, err := pquerna.NewKeyFromURL(e.URI)
	ts.Check(err)
	ahead, err := time.ParseDuration(args[1])
	ts.Check(err)
	c, err := totp.GenerateCode(key.Secret(), time.Now().Add(ahead))
	ts.Check(err)
	ts.Setenv("CODE", c)
}

// sql DSN STATEMENT: runs a statement.
func sql(ts *testscript.TestScript, _ bool, args []string) {
	ctx, cancel := context.WithTimeout(context.Background(), startWithin)
	defer cancel()
	conn, err := pgx.Connect(ctx, args[0])
	ts.Check(err)
	defer func() { _ = conn.Close(ctx) }()
	_, err = conn.Exec(ctx, args[1])
	ts.Check(err)
}

// held are the transactions that scripts hold open, by a script's directory and name.
var held sync.Map

// hold NAME DSN STATEMENT: runs a statement in a transaction that stays open until release NAME.
func hold(ts *testscript.TestScript, _ bool, args []string) {
	ctx, cancel := context.WithTimeout(context.Background(), startWithin)
	defer cancel()
	conn, err := pgx.Connect(ctx, args[1])
	ts.Check(err)
	ts.Defer(func() { _ = conn.Close(context.Background()) })
	_, err = conn.Exec(ctx, "BEGIN")
	ts.Check(err)
	_, err = conn.Exec(ctx, args[2])
	ts.Check(err)
	held.Store(ts.MkAbs(args[0]), conn)
}

// release NAME: rolls back what hold began.
func release(ts *testscript.TestScript, _ bool, args []string) {
	ctx, cancel := context.WithTimeout(context.Background(), startWithin)
	defer cancel()
	v, ok := held.LoadAndDelete(ts.MkAbs(args[0]))
	conn, is := v.(*pgx.Conn)
	if !ok || !is {
		ts.Fatalf("nothing is held as %s", args[0])
	}
	_, err := conn.Exec(ctx, "ROLLBACK")
	ts.Check(err)
}

// shard NAME: puts the connection string of the database's first shard into $SHARD.
func shardOf(ts *testscript.TestScript, _ bool, args []string) {
	ctx, cancel := context.WithTimeout(context.Background(), startWithin)
	defer cancel()
	conn, err := pgx.Connect(ctx, ts.Getenv("SHARD1"))
	ts.Check(err)
	defer func() { _ = conn.Close(ctx) }()
	var name string
	ts.Check(conn.QueryRow(ctx, `SELECT datname FROM pg_database WHERE datname LIKE '%' || $1 || '%'`, args[0]).Scan(&name))
	ts.Setenv("SHARD", shared.DSN(name).Reveal())
}

// fencing DSN: waits until a cutover tries to fence the source.
func fencing(ts *testscript.TestScript, _ bool, args []string) {
	ctx, cancel := context.WithTimeout(context.Background(), startWithin)
	defer cancel()
	conn, err := pgx.Connect(ctx, args[0])
	ts.Check(err)
	defer func() { _ = conn.Close(ctx) }()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for fenced := false; !fenced; {
		ts.Check(conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_locks WHERE relation = 'rehome.gate'::regclass AND mode = 'RowExclusiveLock')`).Scan(&fenced))
		select {
		case <-ctx.Done():
			ts.Fatalf("nobody fences the source")
		case <-tick.C:
		}
	}
}

// begun KIND: waits until a worker is at work on a command of this kind.
func begun(ts *testscript.TestScript, _ bool, args []string) {
	ctx, cancel := context.WithTimeout(context.Background(), startWithin)
	defer cancel()
	conn, err := pgx.Connect(ctx, ts.Getenv("REHOME_DATABASE_URL"))
	ts.Check(err)
	defer func() { _ = conn.Close(ctx) }()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for found := false; !found; {
		ts.Check(conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM rehome_control.replication_commands WHERE kind = $1 AND started_at IS NOT NULL AND finished_at IS NULL)`, args[0]).Scan(&found))
		select {
		case <-ctx.Done():
			ts.Fatalf("no %s is worked on", args[0])
		case <-tick.C:
		}
	}
}

// knocks N: where the server was, accepts and closes N connections of those who look for it.
func knocks(ts *testscript.TestScript, _ bool, args []string) {
	n, err := strconv.Atoi(args[0])
	ts.Check(err)
	ctx, cancel := context.WithTimeout(context.Background(), startWithin)
	defer cancel()
	ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp", ts.Getenv("REHOME_LISTEN"))
	ts.Check(err)
	defer func() { _ = ln.Close() }()
	defer context.AfterFunc(ctx, func() { _ = ln.Close() })()
	for range n {
		conn, err := ln.Accept()
		ts.Check(err)
		_ = conn.Close()
	}
}
