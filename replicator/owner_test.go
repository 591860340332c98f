package replicator_test

import (
	"net/url"

	"github.com/rehomedb/rehome/tenant"
)

// asOwner gives the source to a role that may stream and owns everything, but is no superuser: it may not create event
// triggers. The rig's own session stays the superuser's.
func (r *rig) asOwner() {
	r.t.Helper()
	role := "owner_" + r.id
	quoted := tenant.QuoteIdent(role)
	exec(r.t, r.srcDB, `CREATE ROLE `+quoted+` LOGIN REPLICATION PASSWORD 'secret'`)
	exec(r.t, r.srcDB, `DO $$ DECLARE o record; BEGIN
		EXECUTE format('GRANT CREATE ON DATABASE %I TO `+quoted+`', current_database());
		FOR o IN SELECT c.oid::regclass AS name FROM pg_class c WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') LOOP
			EXECUTE format('ALTER TABLE %s OWNER TO `+quoted+`', o.name);
		END LOOP;
		FOR o IN SELECT t.oid::regtype AS name FROM pg_type t WHERE t.typnamespace = 'public'::regnamespace AND t.typtype = 'e' LOOP
			EXECUTE format('ALTER TYPE %s OWNER TO `+quoted+`', o.name);
		END LOOP;
	END $$`)
	u, err := url.Parse(r.source.Reveal())
	if err != nil {
		r.t.Fatal(err)
	}
	u.User = url.UserPassword(role, "secret")
	r.source = tenant.DSN(u.String())
}
