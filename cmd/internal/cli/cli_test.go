package cli_test

import (
	"net/http"
	"net/http/httptest"
	"os"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/rehomedb/rehome/cmd/internal/cli"
	"github.com/rehomedb/rehome/internal/pgcluster"
)

// shared is the Postgres cluster of this package's tests.
var shared *pgcluster.Cluster

// withCluster starts it around the tests, and not around the program that the scripts run from the same binary.
type withCluster struct{ m *testing.M }

func (w withCluster) Run() int { return pgcluster.Main(w.m, pgcluster.Options{}, &shared) }

func TestMain(m *testing.M) {
	testscript.Main(withCluster{m}, map[string]func(){"rehome": func() { os.Exit(cli.Main()) }})
}

// The scripts of testdata/contract show the command line against a server that speaks the contract.
func TestContract(t *testing.T) {
	t.Parallel()
	testscript.Run(t, testscript.Params{
		Dir: "testdata/contract",
		Setup: func(e *testscript.Env) error {
			srv := httptest.NewServer(newContract())
			moved := httptest.NewServer(http.RedirectHandler("https://elsewhere.example/v1/shards", http.StatusTemporaryRedirect))
			e.Defer(srv.Close)
			e.Defer(moved.Close)
			e.Setenv("SERVER", srv.URL)
			e.Setenv("MOVED", moved.URL)
			e.Setenv("OPERATOR", operator)
			e.Setenv("TERM", "xterm")
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"exits": exits, "key": writeKey},
	})
}

// exits CODE COMMAND…: runs a program that must end with the code.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE COMMAND [ARG]…")
	}
	err := ts.Exec(args[1], args[2:]...)
	code := "0"
	if err != nil {
		code = err.Error()
		if len(code) > len("exit status ") {
			code = code[len("exit status "):]
		}
	}
	if code != args[0] {
		ts.Fatalf("%v ended with %s instead of %s", args[1:], code, args[0])
	}
}

// key URL: writes rehome.json and rehome.key for a server.
func writeKey(ts *testscript.TestScript, _ bool, args []string) {
	ts.Check(os.WriteFile(ts.MkAbs("rehome.json"), []byte(`{"serviceUrl":"`+args[0]+`","dbUrl":"`+args[0]+`/acme"}`), 0o600))
	ts.Check(os.WriteFile(ts.MkAbs("rehome.key"), []byte(`{"`+args[0]+`":{"clientId":"c1","clientSecret":"`+clientSecret+`"}}`), 0o600))
}
