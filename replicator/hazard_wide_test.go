package replicator_test

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/rehomedb/rehome/tenant"
)

// TestHazardWideTables has as many columns as a table may have, as many as a key may have, and none at all.
func TestHazardWideTables(t *testing.T) {
	var wide, key, keyList, ones strings.Builder
	for i := 1; i < 1599; i++ {
		fmt.Fprintf(&wide, ", c%d smallint", i)
		if i < 32 {
			fmt.Fprintf(&key, ", k%d int NOT NULL DEFAULT %d", i, i)
			fmt.Fprintf(&keyList, ", k%d", i)
		}
		if i%2 == 0 {
			fmt.Fprintf(&ones, ", c%d = %d", i, i)
		}
	}
	before := `CREATE TABLE wide (realm_id text NOT NULL, id int NOT NULL` + wide.String() + `, PRIMARY KEY (realm_id, id));
		INSERT INTO wide (realm_id, id, c7) SELECT 'r' || g, g, g FROM generate_series(1, 8) g;
		CREATE TABLE wide_full (realm_id text NOT NULL, id int` + wide.String() + `); ALTER TABLE wide_full REPLICA IDENTITY FULL; INSERT INTO wide_full (realm_id, id, c7) SELECT 'r' || g, g, g FROM generate_series(1, 4) g;
		CREATE TABLE long_key (realm_id text NOT NULL` + key.String() + `, n int, PRIMARY KEY (realm_id` + keyList.String() + `)); INSERT INTO long_key (realm_id, k5, n) SELECT 'r' || g, g, g FROM generate_series(1, 8) g;
		CREATE TABLE longest_key (realm_id text NOT NULL, k0 int NOT NULL` + key.String() + `, n int, PRIMARY KEY (k0` + keyList.String() + `)); INSERT INTO longest_key (realm_id, k0, n) SELECT 'r' || g, g, g FROM generate_series(1, 8) g;
		CREATE TABLE nothing (); INSERT INTO nothing DEFAULT VALUES; INSERT INTO nothing DEFAULT VALUES; INSERT INTO nothing DEFAULT VALUES;
		CREATE TABLE made_up (a int GENERATED ALWAYS AS (1) STORED, b text GENERATED ALWAYS AS ('x' || 'y') STORED); INSERT INTO made_up DEFAULT VALUES; INSERT INTO made_up DEFAULT VALUES; INSERT INTO made_up DEFAULT VALUES;`
	hazard{
		before: before,
		opts:   tenant.ReplicationOptions{FixIdentity: true, Reference: []string{"nothing", "made_up"}, Accept: []string{"constraint-without-realm:public.longest_key_pkey"}},
		stream: []string{
			`UPDATE wide SET c1 = 5` + ones.String() + `; UPDATE wide SET realm_id = 'm' || id WHERE id % 2 = 0; INSERT INTO wide (realm_id, id) SELECT 'q', g FROM generate_series(1, 5) g; DELETE FROM wide WHERE id = 3`,
			`UPDATE wide_full SET c1 = 5` + ones.String() + `; UPDATE wide_full SET realm_id = 'm' || id WHERE id = 2; DELETE FROM wide_full WHERE id = 3`,
			`UPDATE long_key SET n = 0; UPDATE long_key SET k31 = 99, realm_id = 'm' || k5 WHERE k5 % 2 = 0; DELETE FROM long_key WHERE k5 = 3; INSERT INTO long_key (realm_id, k5) SELECT 'q', g FROM generate_series(1, 5) g`,
			`UPDATE longest_key SET n = 0; UPDATE longest_key SET k31 = 99, realm_id = 'm' || k0 WHERE k0 % 2 = 0; DELETE FROM longest_key WHERE k0 = 3`,
			`INSERT INTO nothing DEFAULT VALUES; DELETE FROM nothing WHERE ctid = (SELECT min(ctid) FROM nothing); BEGIN; INSERT INTO nothing DEFAULT VALUES; INSERT INTO nothing DEFAULT VALUES; INSERT INTO nothing DEFAULT VALUES; COMMIT`,
			`INSERT INTO made_up DEFAULT VALUES; INSERT INTO made_up DEFAULT VALUES; DELETE FROM made_up WHERE ctid = (SELECT min(ctid) FROM made_up)`,
		},
		after: func(t *testing.T, r *rig) {
			for i, sh := range r.shards {
				c := open(t, sh.DSN)
				if n, m := scalar[int](t, c, `SELECT count(*)::int FROM nothing`), scalar[int](t, c, `SELECT count(*)::int FROM made_up`); n != 6 || m != 4 {
					t.Errorf("shard %d has %d rows of no columns and %d of generated ones, want 6 and 4", i, n, m)
				}
			}
		},
	}.run(t)
}

// TestHazardLargeValue copies and streams values of tens of megabytes.
func TestHazardLargeValue(t *testing.T) {
	if os.Getenv("REHOME_LONG") == "" {
		return // make long
	}
	const text = `(SELECT string_agg(md5(g::text || $$%s$$), E'\n\t\\"日') FROM generate_series(1, 1000000) g)`
	hazard{
		before: `CREATE TABLE large (realm_id text NOT NULL, id int NOT NULL, val text, raw bytea, PRIMARY KEY (realm_id, id)); ALTER TABLE large ALTER val SET STORAGE EXTERNAL;
			INSERT INTO large VALUES ('r', 1, ` + fmt.Sprintf(text, "a") + `), ('s', 1, 'small')`,
		stream: []string{
			`UPDATE large SET val = ` + fmt.Sprintf(text, "b") + ` WHERE realm_id = 's'`,
			`UPDATE large SET raw = '\x00ff'; UPDATE large SET raw = decode(repeat('00ff5c27', 3000000), 'hex') WHERE realm_id = 'r'`,
		},
		after: func(t *testing.T, r *rig) {
			if n := r.total(`SELECT count(*) FROM large WHERE octet_length(val) > 38000000`); n != 2 {
				t.Errorf("%d rows have large values, want 2", n)
			}
		},
	}.run(t)
}
