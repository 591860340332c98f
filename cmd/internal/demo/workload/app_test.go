package workload_test

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/coder/websocket"
	"github.com/coder/websocket/wsjson"

	"github.com/rehomedb/rehome/cmd/internal/demo/workload"
)

// testLogger writes to the test's output.
func testLogger(t *testing.T) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), nil))
}

// reply is an answer that was read to its end.
type reply struct {
	workload.Answer
	status int
	header http.Header
}

func post(t *testing.T, url string, body any) reply {
	t.Helper()
	raw, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	return send(t, req)
}

func send(t *testing.T, req *http.Request) reply {
	t.Helper()
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	r := reply{status: resp.StatusCode, header: resp.Header}
	if err := json.NewDecoder(resp.Body).Decode(&r.Answer); err != nil {
		t.Fatal(err)
	}
	return r
}

func TestApp(t *testing.T) {
	t.Parallel()
	_, pool, _ := newSource(t, 1, 1)
	app := &workload.App{Backend: workload.Single{DB: pool}, Side: workload.SideSource, Logger: testLogger(t)}
	server := httptest.NewServer(app.Handler())
	t.Cleanup(server.Close)
	const realm, id = "rlm-0001", "6f1c0f5e-0000-4000-8000-000000000001"
	transfers, documents := server.URL+"/realms/"+realm+"/transfers", server.URL+"/realms/"+realm+"/documents"
	balance := func() int64 {
		return one[int64](t, pool, "SELECT (balance * 100)::bigint FROM ledger.accounts WHERE realm_id = $1 AND id = 2", realm)
	}
	before := balance()

	transfer := workload.Op{ID: id, Transfer: &workload.Transfer{From: 1, To: 2, Cents: 125}}
	for i, want := range []int{http.StatusCreated, http.StatusOK, http.StatusOK} {
		if r := post(t, transfers, transfer); r.status != want {
			t.Errorf("transfer, sent %d times before: %d %+v, want %d", i, r.status, r.Answer, want)
		} else if got := r.header.Get(workload.SideHeader); got != workload.SideSource {
			t.Errorf("answered by %q", got)
		}
	}
	if got := balance() - before; got != 125 {
		t.Errorf("the balance rose by %d, want 125", got)
	}
	for name, bad := range map[string]workload.Transfer{
		"too much": {From: 1, To: 2, Cents: 1e12}, "no account": {From: 1, To: 99999999, Cents: 1}, "itself": {From: 1, To: 1, Cents: 1}, "negative": {From: 1, To: 2, Cents: -1},
	} {
		if r := post(t, transfers, workload.Op{ID: "6f1c0f5e-0000-4000-8000-000000000002", Transfer: &bad}); r.status != http.StatusUnprocessableEntity {
			t.Errorf("%s: %d %+v", name, r.status, r.Answer)
		}
	}
	if balance()-before != 125 {
		t.Error("a refused transfer changed a balance")
	}
	for event, want := range map[string]int{id: http.StatusOK, "6f1c0f5e-0000-4000-8000-000000000002": http.StatusNotFound} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL+"/realms/"+realm+"/events/"+event, nil)
		if err != nil {
			t.Fatal(err)
		}
		if r := send(t, req); r.status != want {
			t.Errorf("event %s: %d, want %d", event, r.status, want)
		}
	}

	const doc = "6f1c0f5e-0000-4000-8000-0000000000d0"
	big := strings.Repeat("großer Text ", 100_000)
	for i, step := range []struct {
		edit     workload.DocumentEdit
		want     string // title
		revision int
	}{
		{workload.DocumentEdit{Document: doc, Action: workload.PutDocument, Title: "one", Body: big, Attachment: []byte{0, 1, 255}}, "one", 1},
		{workload.DocumentEdit{Document: doc, Action: workload.RenameDocument, Title: "two"}, "two", 2},
		{workload.DocumentEdit{Document: doc, Action: workload.DeleteDocument}, "", 0},
	} {
		op := workload.Op{ID: "6f1c0f5e-0000-4000-8000-00000000010" + string(rune('0'+i)), Document: &step.edit}
		if r := post(t, documents, op); r.status != http.StatusCreated {
			t.Fatalf("%s: %d %+v", step.edit.Action, r.status, r.Answer)
		}
		got := one[string](t, pool, "SELECT coalesce((SELECT title || ' ' || revision || ' ' || size FROM documents WHERE realm_id = $1 AND id = $2), '')", realm, doc)
		want := ""
		if step.want != "" {
			want = step.want + " " + string(rune('0'+step.revision)) + " 1300000"
		}
		if got != want {
			t.Errorf("after %s: %q, want %q", step.edit.Action, got, want)
		}
	}

	exec(t, pool, `CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
		RAISE EXCEPTION USING ERRCODE = 'RH001', MESSAGE = 'database has moved', HINT = 'go to new'; END $$;
		CREATE TRIGGER f BEFORE INSERT ON events EXECUTE FUNCTION f()`)
	transfer.ID = "6f1c0f5e-0000-4000-8000-000000000003"
	r := post(t, transfers, transfer)
	if r.status != http.StatusServiceUnavailable || r.header.Get("Retry-After") != "0" || r.Code != "moved" || r.Hint != "go to new" {
		t.Errorf("behind the fence: %d, Retry-After %q, %+v", r.status, r.header.Get("Retry-After"), r.Answer)
	}
}

func TestAppSocketBeats(t *testing.T) {
	t.Parallel()
	app := &workload.App{Side: workload.SideShards, Logger: testLogger(t)}
	server := httptest.NewServer(app.Handler())
	t.Cleanup(server.Close)
	conn, _, err := websocket.Dial(t.Context(), server.URL+"/ws", nil) //nolint:bodyclose // the library closes it
	if err != nil {
		t.Fatal(err)
	}
	defer conn.CloseNow()
	for range 2 {
		var beat workload.Heartbeat
		if err := wsjson.Read(t.Context(), conn, &beat); err != nil || beat.Type != "heartbeat" || beat.Side != workload.SideShards {
			t.Fatalf("%+v, %v", beat, err)
		}
	}
}
