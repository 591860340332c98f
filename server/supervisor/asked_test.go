package supervisor

import (
	"testing"

	"github.com/rehomedb/rehome/server/api"
	"github.com/rehomedb/rehome/tenant"
)

// TestPauseIsTriedAgain: what a person asked for does not fail because a transaction of the control database did.
func TestPauseIsTriedAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t, itemsDDL)
	w.serve("a")
	w.waitPhase(tenant.InSync)
	_, err := w.pool.Exec(t.Context(), `CREATE SEQUENCE tries;
		CREATE FUNCTION fails() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
			IF nextval('public.tries') % 3 <> 0 THEN RAISE EXCEPTION 'ended' USING ERRCODE = '25P03'; END IF; -- as after stallTimeout
			RETURN NEW;
		END $$;
		CREATE TRIGGER fails BEFORE UPDATE ON rehome_control.replications FOR EACH ROW
			WHEN ((new.phase = 'paused') IS DISTINCT FROM (old.phase = 'paused')) EXECUTE FUNCTION fails()`)
	must(t, err)
	if _, problem := w.answer(w.ask(api.CommandPause, api.CommandArgs{})); problem != nil {
		t.Fatalf("pause: %+v", problem)
	}
	if st := w.state(); st.Phase != tenant.Paused || st.Resume != tenant.InSync {
		t.Errorf("state: %+v", st)
	}
	if _, problem := w.answer(w.ask(api.CommandResume, api.CommandArgs{})); problem != nil {
		t.Fatalf("resume: %+v", problem)
	}
	w.arrives(5000)
	var tries int
	must(t, w.pool.QueryRow(t.Context(), `SELECT last_value FROM tries`).Scan(&tries))
	if tries != 6 {
		t.Errorf("%d tries", tries)
	}
}
