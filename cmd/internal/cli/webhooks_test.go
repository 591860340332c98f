package cli_test

import (
	"context"
	"encoding/json"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/rehomedb/rehome/server/api"
)

// ids FILE NAME…: puts the ids of a list of webhooks into variables.
func ids(ts *testscript.TestScript, _ bool, args []string) {
	var list []api.Webhook
	ts.Check(json.Unmarshal([]byte(ts.ReadFile(args[0])), &list))
	if len(list) != len(args)-1 {
		ts.Fatalf("%d webhooks for %d names", len(list), len(args)-1)
	}
	for i, name := range args[1:] {
		ts.Setenv(name, list[i].ID)
	}
}

// arrived WEBHOOK: waits until all of a webhook's deliveries are delivered, and there is one.
func arrived(ts *testscript.TestScript, _ bool, args []string) {
	ctx, cancel := context.WithTimeout(context.Background(), startWithin)
	defer cancel()
	conn, err := pgx.Connect(ctx, ts.Getenv("REHOME_DATABASE_URL"))
	ts.Check(err)
	defer func() { _ = conn.Close(ctx) }()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		var all bool
		ts.Check(conn.QueryRow(ctx, `SELECT coalesce(bool_and(state = 'delivered'), false) FROM rehome_control.webhook_deliveries WHERE webhook = $1`, args[0]).Scan(&all))
		if all {
			return
		}
		select {
		case <-ctx.Done():
			ts.Fatalf("nothing arrived")
		case <-tick.C:
		}
	}
}
