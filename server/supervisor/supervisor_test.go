package supervisor

import (
	"encoding/json"
	"errors"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/replicator"
	"github.com/rehomedb/rehome/replicator/catalog"
	"github.com/rehomedb/rehome/server/api"
	"github.com/rehomedb/rehome/tenant"
)

func TestTakeOver(t *testing.T) {
	t.Parallel()
	w := newWorld(t, itemsDDL)
	stopA := w.serve("a")
	w.waitPhase(tenant.InSync)
	stopB := w.serve("b")
	// As if a had stood still for longer than its lease: it runs on, and does not know that it has no lease any more.
	eventually(t, "b takes over", func() bool {
		if w.holder() == "b" {
			return true
		}
		_, err := w.pool.Exec(t.Context(), `UPDATE rehome_control.leases SET expires_at = now() - interval '1 second' WHERE resource = $1 AND holder = 'a'`, resource(w.id))
		must(t, err)
		return false
	})
	for i := range 20 {
		exec(t, w.source, `INSERT INTO items VALUES ('r1', $1, 1)`, 1000+i)
	}
	w.there(1019)
	if _, problem := w.answer(w.ask(api.CommandVerify, api.CommandArgs{})); problem != nil {
		t.Fatalf("verify: %+v", problem)
	}
	if n := w.events("verify-finished"); n != 1 {
		t.Errorf("the command was answered %d times", n)
	}
	var clean bool
	must(t, w.pool.QueryRow(t.Context(), `SELECT bool_and(clean) FROM rehome_control.verifications`).Scan(&clean))
	if !clean {
		t.Error("not clean")
	}
	// b stops in order and gives the lease back: a has it again at once.
	stopB()
	began := time.Now()
	eventually(t, "a takes over", func() bool { return w.holder() == "a" })
	if took := time.Since(began); took > leaseTTL/2 {
		t.Errorf("a server that stopped in order left its work for %s", took)
	}
	w.arrives(2000)
	stopA()
	if h := w.holder(); h != "" {
		t.Errorf("%s keeps the lease after its end", h)
	}
}

func TestPauseAndResume(t *testing.T) {
	t.Parallel()
	w := newWorld(t, itemsDDL)
	w.serve("a")
	w.serve("b")
	w.waitPhase(tenant.InSync)
	if _, problem := w.answer(w.ask(api.CommandPause, api.CommandArgs{Reason: "for the night"})); problem != nil {
		t.Fatalf("pause: %+v", problem)
	}
	if st := w.state(); st.Phase != tenant.Paused || st.Reason != "for the night" || st.Resume != tenant.InSync {
		t.Errorf("state: %+v", st)
	}
	exec(t, w.source, `INSERT INTO items VALUES ('r1', 1000, 1)`)
	if _, problem := w.answer(w.ask(api.CommandVerify, api.CommandArgs{})); problem == nil {
		t.Error("a verification of what is paused says that it succeeded")
	}
	if _, problem := w.answer(w.ask(api.CommandComplete, api.CommandArgs{})); problem == nil || problem.Code != tenant.ErrTransition.Code {
		t.Errorf("complete before the cutover: %+v", problem)
	}
	if _, problem := w.answer(w.ask(api.CommandResume, api.CommandArgs{})); problem != nil {
		t.Fatalf("resume: %+v", problem)
	}
	w.there(1000)
	for _, kind := range []string{"pause-finished", "resume-finished"} {
		if n := w.events(kind); n != 1 {
			t.Errorf("%d events %s", n, kind)
		}
	}
}

// TestProblemInAPhaseThatIsNotPaused lets the engine end by itself while a cutover answers for what happens.
func TestProblemInAPhaseThatIsNotPaused(t *testing.T) {
	t.Parallel()
	w := newWorld(t, itemsDDL)
	w.serve("a")
	w.waitPhase(tenant.InSync)
	set := func(st tenant.State) {
		raw, err := json.Marshal(st)
		must(t, err)
		_, err = w.pool.Exec(t.Context(), `UPDATE rehome_control.replications SET state = $2, phase = $3 WHERE id = $1`, w.id, raw, string(st.Phase))
		must(t, err)
	}
	set(tenant.State{Phase: tenant.CuttingOver})
	shardConn := open(t, w.target)
	exec(t, shardConn, `SELECT set_config('rehome.pass', $1, false)`, w.supervisor("a").pass(w.name).Reveal())
	exec(t, shardConn, `INSERT INTO items VALUES ('r1', 5000, 7)`)
	exec(t, w.source, `INSERT INTO items VALUES ('r1', 5000, 1)`)
	eventually(t, "the engine ends", func() bool {
		return scalar[int](t, w.source, `SELECT count(*)::int FROM pg_replication_slots WHERE slot_name = $1 AND active`, "rehome_"+w.id) == 0
	})
	exec(t, shardConn, `DELETE FROM items WHERE id = 5000`)
	w.there(5000)
	set(tenant.State{Phase: tenant.InSync}) // not before: the problem would be told of that phase, which it pauses
	w.arrives(5001)
}

func TestCancelDuringCopy(t *testing.T) {
	t.Parallel()
	w := newWorld(t, `CREATE TABLE items (realm_id text, id bigint, n int); ALTER TABLE items REPLICA IDENTITY FULL;
		INSERT INTO items SELECT 'r' || (g % 20), g, 0 FROM generate_series(1, 400000) g; CREATE INDEX ON items (id); CREATE INDEX ON items (n, realm_id);`)
	w.serve("a")
	eventually(t, "it copies", func() bool { return w.state().Phase == tenant.Copying })
	if _, problem := w.answer(w.ask(api.CommandCancel, api.CommandArgs{})); problem != nil {
		t.Fatalf("cancel: %+v", problem)
	}
	if st := w.state(); st.Phase != tenant.Cancelled {
		t.Fatalf("state: %+v", st)
	}
	for what, query := range map[string]string{
		"slot":        `SELECT count(*)::int FROM pg_replication_slots WHERE database = current_database()`,
		"publication": `SELECT count(*)::int FROM pg_publication`,
		"schema":      `SELECT count(*)::int FROM pg_namespace WHERE nspname = 'rehome'`,
		"trigger":     `SELECT count(*)::int FROM pg_trigger WHERE NOT tgisinternal`,
	} {
		if n := scalar[int](t, w.source, query); n != 0 {
			t.Errorf("%d %s left at the source", n, what)
		}
	}
	if n := scalar[int](t, open(t, w.target), `SELECT count(*)::int FROM pg_class WHERE relname = 'items'`); n != 0 {
		t.Error("the table is left at the shard")
	}
	eventually(t, "the lease is given back", func() bool { return w.holder() == "" })
	// What is over can be cancelled again, as after an answer that was lost.
	if _, problem := w.answer(w.ask(api.CommandCancel, api.CommandArgs{})); problem != nil {
		t.Errorf("cancel again: %+v", problem)
	}
}

// TestCancelBeforeAnythingWasMade takes back a replication whose source never answered.
func TestCancelBeforeAnythingWasMade(t *testing.T) {
	t.Parallel()
	w := newWorld(t, itemsDDL)
	_, err := w.pool.Exec(t.Context(), `DELETE FROM rehome_control.replications`)
	must(t, err)
	w.start("postgres://nobody@127.0.0.1:1/nothing", tenant.State{Phase: tenant.Paused, Resume: tenant.Created})
	w.serve("a")
	if _, problem := w.answer(w.ask(api.CommandCancel, api.CommandArgs{})); problem != nil {
		t.Fatalf("cancel: %+v", problem)
	}
	if st := w.state(); st.Phase != tenant.Cancelled {
		t.Errorf("state: %+v", st)
	}
}

func TestJournalRefusesAFencedWorker(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	w := newWorld(t, itemsDDL)
	a, b := w.supervisor("a"), w.supervisor("b")
	first, err := a.takeLease(ctx, w.id)
	must(t, err)
	if _, err := b.takeLease(ctx, w.id); !errors.Is(err, errNoLease) {
		t.Fatalf("b took a lease that a holds: %v", err)
	}
	old := &journal{s: a, id: w.id, database: w.name, epoch: first}
	must(t, old.held(ctx))
	expire := func() {
		_, err = w.pool.Exec(ctx, `UPDATE rehome_control.leases SET expires_at = now() - interval '1 second' WHERE resource = $1`, resource(w.id))
		must(t, err)
	}
	expire()
	second, err := b.takeLease(ctx, w.id)
	must(t, err)
	if second <= first {
		t.Errorf("epoch %d after %d", second, first)
	}
	observe := func() error {
		_, err := old.Observe(ctx, tenant.Observation{Kind: tenant.SawProblem, Reason: "late"})
		return err
	}
	for what, err := range map[string]error{
		"observe": observe(),
		"origin":  old.SaveOrigin(ctx, replicator.Origin{Catalogue: &catalog.Catalogue{}}),
		"change":  old.ChangeSource(ctx, tenant.SourceChange{Do: "x"}),
		"copied":  old.CopiedTable(ctx, "public.items", 0, 1, 1, 1),
		"held":    old.held(ctx),
	} {
		if !errors.Is(err, replicator.ErrFenced) {
			t.Errorf("%s by a former owner: %v", what, err)
		}
	}
	a.dropLease(ctx, w.id, first)
	if h := w.holder(); h != "b" {
		t.Errorf("a former owner gave back the lease of %q", h)
	}
	if st := w.state(); st.Phase != tenant.Created {
		t.Errorf("state: %+v", st)
	}

	// An owner that stands still in the middle of a transaction keeps nobody from taking over for long.
	now := &journal{s: b, id: w.id, database: w.name, epoch: second}
	inside, goOn := make(chan struct{}), make(chan struct{})
	late := make(chan error, 1)
	go func() {
		_, err := now.observe(ctx, tenant.Observation{Kind: tenant.SawOwned}, func(pgx.Tx, tenant.State) error {
			close(inside)
			<-goOn
			return nil
		})
		late <- err
	}()
	<-inside
	// Its lease ends meanwhile; the row cannot be written as long as the transaction holds it, so time is moved instead.
	taken := make(chan error, 1)
	go func() {
		expire()
		_, err := a.takeLease(ctx, w.id)
		taken <- err
	}()
	select {
	case err := <-taken:
		must(t, err)
	case <-time.After(patience):
		t.Error("nobody can take over from an owner that stands still in a transaction")
	}
	close(goOn)
	if err := <-late; err == nil {
		t.Error("the transaction of an owner that stood still was committed")
	}
}
