package cutover_test

import (
	"strings"
	"testing"

	"github.com/rehomedb/rehome/gate"
	"github.com/rehomedb/rehome/internal/pgcluster"
	"github.com/rehomedb/rehome/server/cutover"
	"github.com/rehomedb/rehome/tenant"
)

// One source, two replications: once the source was cut over to the first one's target, the second one's must stay
// closed, whatever asks and whatever was left unfinished. Otherwise two targets take writes.
func TestAnotherReplicationsDecisionOpensNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	ctx := t.Context()
	other := w.job
	other.Replication, other.Database, other.TargetURL = "def456def456", "acme2", "https://own.example/acme2"
	dsn := pgcluster.NewDatabase(t, own)
	shard := connect(t, dsn)
	exec(t, shard, strings.Split(schemaSQL, "INSERT")[0])
	must(t, gate.InstallShard(ctx, shard, pass))
	_, err := gate.FenceShardTables(ctx, shard)
	must(t, err)
	other.Shards = []cutover.Shard{{Name: "eu-2", Ordinal: 1, DSN: dsn}}
	for _, sql := range []string{
		`INSERT INTO rehome_control.databases (name, kind) VALUES ('acme2', 'sharded')`,
		`INSERT INTO rehome_control.replications (id, database, source_dsn_sealed, source_label, target_url, options, state, phase, slot_name, publication, placement_epoch)
			VALUES ('def456def456', 'acme2', '', '', '', '{}', '{}', 'in_sync', '', '', 1)`,
		`INSERT INTO rehome_control.verifications (id, replication, finished_at, clean, result) SELECT 'v2', 'def456def456', now(), clean, result FROM rehome_control.verifications`,
	} {
		_, err := w.pool.Exec(ctx, sql)
		must(t, err)
	}
	c := w.coordinator(t, nil)
	_, err = c.Run(ctx, w.job, w.stream, cutover.Attempt{ID: "first", MaxPause: patient})
	must(t, err)

	closed := func(when string) {
		t.Helper()
		s, err := gate.ReadGate(ctx, shard)
		must(t, err)
		if s.Side != gate.SideClosed {
			t.Errorf("%s the other target's gate says %s", when, s.Side)
		}
		if _, err := shard.Exec(ctx, `INSERT INTO entries VALUES ('x', 'r')`); err == nil {
			t.Errorf("%s the other target takes writes", when)
		}
	}
	res, err := c.ResolveAndFollow(ctx, other)
	must(t, err)
	if res.Decided() {
		t.Error("the first one's decision counts as the other's")
	}
	closed("after following")
	_, err = c.Run(ctx, other, &copier{source: other.Source, shards: other.Shards}, cutover.Attempt{ID: "second", MaxPause: patient})
	if te := tenant.AsError(err); te == nil || te.Code != "cutover-refused" || !hasFinding(te.Findings, "gate-not-at-source") {
		t.Errorf("a second target: %v", err)
	}
	closed("after its own cutover was refused")

	// An attempt of the other that was under way when the first one won.
	_, err = w.pool.Exec(ctx, `INSERT INTO rehome_control.cutovers (attempt, replication, direction, gate_epoch, step, max_pause_ms) VALUES ('late', 'def456def456', 'cutover', 1, 'intent', 1)`)
	must(t, err)
	res, err = c.ResolveAndFollow(ctx, other)
	must(t, err)
	if got := w.outcome(t, "late"); res.Decided() || len(res.Resolved) != 1 || got != cutover.OutcomeSource {
		t.Errorf("the late attempt: %s, %+v", got, res)
	}
	closed("after its attempt was resolved")

	// A control database that was restored has lost the attempt: then the address in the gate tells whose it was.
	_, err = w.pool.Exec(ctx, `DELETE FROM rehome_control.cutovers`)
	must(t, err)
	res, err = c.ResolveAndFollow(ctx, other)
	must(t, err)
	if res.Decided() {
		t.Error("without the record the decision counts as the other's")
	}
	closed("without the record")
	if res, err = c.ResolveAndFollow(ctx, w.job); err != nil || !res.Decided() {
		t.Errorf("without the record the decision is not the first one's: %+v, %v", res, err)
	}
}
