package doctor

import (
	"strings"
	"testing"

	"github.com/rehomedb/rehome/tenant"
)

func TestInstallation(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	admin := own.DSN("postgres")
	w.finds()

	w.channel = "log:"
	w.finds("channel-log")
	w.channel = "smtp://mail.test:25"

	w.control(`INSERT INTO rehome_control.events (stream, seq, subject, event, created_at) VALUES ('x', 1, 's', '{}', now() - interval '2 minutes')`)
	w.finds("events-unpublished")
	w.control(`UPDATE rehome_control.events SET published_at = now()`)

	w.control(`INSERT INTO rehome_control.redirects (database, target_url, mode) VALUES ($1, 'https://own.test/' || $1, 'redirect')`, w.database)
	w.finds("redirect-loop")
	w.control(`DELETE FROM rehome_control.redirects`)

	w.control(`INSERT INTO rehome_control.databases (name, kind, state, deleted_at, purge_after) VALUES ('gone', 'adopted', 'deleted', now(), now() + interval '1 day')`)
	w.control(`INSERT INTO rehome_control.redirects (database, target_url, mode) VALUES ('gone', 'https://new.test/gone', 'redirect')`)
	w.fixes([]string{"redirect-without-tombstone"})

	// What a shard owns.
	w.at(w.shard(), `DELETE FROM rehome.owned`)
	w.fixes([]string{"owned-disagrees"})
	w.at(w.shard(), `UPDATE rehome.owned SET bucket_to = bucket_to - 1`)
	w.fixes([]string{"owned-disagrees"})
	w.at(w.shard(), `DROP SCHEMA rehome CASCADE`)
	w.fixes([]string{"owned-disagrees"})
	w.at(w.shard(), `UPDATE rehome.owned SET epoch = 7`)
	w.fixes([]string{"owned-ahead"}, "owned-ahead") // another's word is not overwritten
	w.at(w.shard(), `UPDATE rehome.owned SET epoch = 1`)
	w.finds()

	// Placements.
	w.control(`UPDATE rehome_control.placements SET placement = jsonb_set(placement, '{ranges,0,from}', '5')`)
	w.finds("placement-invalid")
	w.control(`UPDATE rehome_control.placements SET placement = jsonb_set(jsonb_set(placement, '{ranges,0,from}', '0'), '{pins}', '{"r1": "mars"}')`)
	w.finds("owned-disagrees", "placement-unknown-shard")
	w.control(`UPDATE rehome_control.placements SET placement = placement - 'pins'`)

	// Half done, missing, replaced.
	second := w.database + "b"
	w.create(second)
	w.control(`UPDATE rehome_control.databases SET placement_epoch = 0 WHERE name = $1`, second)
	w.at(admin, `DROP DATABASE `+second)
	w.fixes([]string{"database-half-created"})
	comment := w.ask(admin, `SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = '`+second+`'`)
	w.at(admin, `COMMENT ON DATABASE `+second+` IS 'mine'`)
	w.finds("database-foreign")
	w.at(admin, `COMMENT ON DATABASE `+second+` IS `+tenant.QuoteLiteral(comment))
	w.at(admin, `DROP DATABASE `+second)
	w.finds("database-missing")
	_, err := w.catalogue.SoftDelete(t.Context(), second, 0)
	w.must(err)
	w.control(`UPDATE rehome_control.databases SET state = 'purged' WHERE name = $1`, second)
	w.fixes([]string{"database-half-purged"})

	// Shards.
	w.control(`UPDATE rehome_control.shards SET system_identifier = '1' || system_identifier WHERE name = 'eu-1'`)
	w.finds("shard-other-server")
	w.control(`UPDATE rehome_control.shards SET system_identifier = substr(system_identifier, 2) WHERE name = 'eu-1'`)
	var sealed []byte
	w.must(w.pool.QueryRow(t.Context(), `SELECT dsn_sealed FROM rehome_control.shards WHERE name = 'eu-1'`).Scan(&sealed))
	w.control(`UPDATE rehome_control.shards SET dsn_sealed = $1 WHERE name = 'eu-1'`, w.box.Seal("shard-dsn", "postgres://u:hidden@127.0.0.1:1/postgres"))
	r := w.finds("shard-unreachable")
	if strings.Contains(r.Findings[0].Message, "hidden") {
		t.Errorf("a password is in %q", r.Findings[0].Message)
	}
	w.control(`UPDATE rehome_control.shards SET dsn_sealed = $1 WHERE name = 'eu-1'`, sealed)
	w.finds()
}

// Two fixes do not run side by side.
func TestOneFixAtATime(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	unlock, err := w.doctor.lock(t.Context())
	w.must(err)
	if _, err := w.doctor.Fix(t.Context()); tenant.AsError(err).Code != "doctor-busy" {
		t.Errorf("a second fix: %v", err)
	}
	unlock()
	if _, err := w.doctor.Fix(t.Context()); err != nil {
		t.Error(err)
	}
}

// What a slot's state means.
func TestSlotStates(t *testing.T) {
	t.Parallel()
	r := &replication{id: "x", slot: "rehome_x", state: tenant.State{Phase: tenant.InSync}}
	for _, c := range []struct {
		slot *slot
		want string
	}{
		{&slot{status: "reserved", active: true}, ""},
		{&slot{status: "reserved", active: false}, "slot-inactive"},
		{&slot{status: "reserved", active: true, held: 2 << 30}, "slot-holds-wal"},
		{&slot{status: "extended", active: true}, "slot-holds-wal"},
		{&slot{status: "unreserved", active: true}, "slot-nearly-lost"},
		{&slot{status: "lost"}, "slot-lost"},
		{nil, "slot-missing"},
	} {
		var f findings
		checkSlot(r, &sourceView{published: true, slot: c.slot}, &f)
		var got string
		for _, n := range f.list {
			got += n.Code
		}
		if got != c.want {
			t.Errorf("%+v: %q instead of %q", c.slot, got, c.want)
		}
	}
}
