package preflight_test

import (
	"context"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/internal/pgcluster"
	"github.com/rehomedb/rehome/replicator/preflight"
	"github.com/rehomedb/rehome/tenant"
)

// TestHazardsAreFound has what cannot be carried, or not as it is: each is named before a byte moves.
func TestHazardsAreFound(t *testing.T) {
	t.Parallel()
	source := pgcluster.NewDatabase(t, cluster)
	conn := connect(t, source)
	execute(t, conn, `
		CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE DOMAIN feeling AS mood; CREATE TYPE mixed AS (a int, m feeling[]);
		CREATE TABLE by_enum (realm_id text NOT NULL, m feeling NOT NULL, PRIMARY KEY (realm_id, m)) PARTITION BY HASH (m); CREATE TABLE by_enum_0 PARTITION OF by_enum FOR VALUES WITH (MODULUS 1, REMAINDER 0);
		CREATE TABLE by_row (realm_id text NOT NULL, m mixed NOT NULL, PRIMARY KEY (realm_id, m)) PARTITION BY LIST (realm_id); CREATE TABLE by_row_0 PARTITION OF by_row DEFAULT PARTITION BY HASH (m);
		CREATE TABLE by_text (realm_id text NOT NULL, m mood NOT NULL, PRIMARY KEY (realm_id, m)) PARTITION BY HASH (realm_id); CREATE TABLE by_text_0 PARTITION OF by_text FOR VALUES WITH (MODULUS 1, REMAINDER 0);
		CREATE TABLE gen_key (realm_id text NOT NULL, n int, low int GENERATED ALWAYS AS (n % 10) STORED, PRIMARY KEY (realm_id, low));
		CREATE TABLE bare (); CREATE TABLE bare_full (); ALTER TABLE bare_full REPLICA IDENTITY FULL;
		CREATE UNLOGGED TABLE volatile (realm_id text PRIMARY KEY); SELECT lo_create(0);
		CREATE EXTENSION postgres_fdw; CREATE SERVER far FOREIGN DATA WRAPPER postgres_fdw; CREATE FOREIGN TABLE abroad (realm_id text) SERVER far;
		CREATE FUNCTION on_ddl() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END'; CREATE EVENT TRIGGER watcher ON ddl_command_end EXECUTE FUNCTION on_ddl();`)
	r := check(t, preflight.Input{Source: source, Targets: shards(t, 2), Options: tenant.ReplicationOptions{Reference: []string{"bare", "bare_full"}}})
	found := map[string]tenant.Severity{}
	for _, f := range r.Findings {
		found[f.ID()] = f.Severity
	}
	for _, id := range []string{
		"hash-partitions-of-enum:public.by_enum", "hash-partitions-of-enum:public.by_row", "identity-generated:public.gen_key", "no-identity:public.bare",
		"unlogged-table:public.volatile", "large-objects:source", "foreign-table:public.abroad",
	} {
		if found[id] != tenant.Blocking {
			t.Errorf("%s is %q, want blocking", id, found[id])
		}
	}
	if found["event-trigger:watcher"] != tenant.Warning {
		t.Error("the event trigger is not named")
	}
	for id := range found {
		if strings.HasPrefix(id, "hash-partitions-of-enum:public.by_text") || strings.HasPrefix(id, "no-identity:public.bare_full") {
			t.Errorf("%s is no hazard", id)
		}
	}
}

// TestSourceThatChecksNoEncoding must be accepted by name: its texts may hold any bytes.
func TestSourceThatChecksNoEncoding(t *testing.T) {
	t.Parallel()
	admin := connect(t, cluster.DSN("postgres"))
	execute(t, admin, `CREATE DATABASE raw_bytes TEMPLATE template0 ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C'`)
	t.Cleanup(func() {
		c, err := pgx.Connect(context.Background(), cluster.DSN("postgres").Reveal())
		if err != nil {
			t.Error(err)
			return
		}
		if _, err := c.Exec(context.Background(), `DROP DATABASE raw_bytes WITH (FORCE)`); err != nil {
			t.Error(err)
		}
		_ = c.Close(context.Background())
	})
	source := cluster.DSN("raw_bytes")
	execute(t, connect(t, source), `CREATE TABLE texts (realm_id text PRIMARY KEY); INSERT INTO texts VALUES (E'\xff\xfe')`)
	targets := shards(t, 1)
	for _, accept := range []bool{false, true} {
		var opts tenant.ReplicationOptions
		if accept {
			opts.Accept = []string{"encoding:source"}
		}
		r := check(t, preflight.Input{Source: source, Targets: targets, Options: opts})
		n := 0
		for _, f := range r.Findings {
			if f.ID() == "encoding:source" && f.Severity == tenant.Blocking && f.Accepted == accept {
				n++
			}
		}
		if n != 1 {
			t.Errorf("accepted %v: the encoding is named %d times", accept, n)
		}
	}
}
