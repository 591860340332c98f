package gate_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/rehomedb/rehome/gate"
	"github.com/rehomedb/rehome/tenant"
)

// shadowsSQL are a client's own objects under the names of those that the fence uses: each gives itself away.
const shadowsSQL = `
CREATE SCHEMA shadows;
CREATE FUNCTION shadows.taken_in() RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'taken in, as %', current_user; END $$;
CREATE DOMAIN shadows.record AS text DEFAULT 'x' CHECK (shadows.taken_in());
CREATE DOMAIN shadows.text AS pg_catalog.text CHECK (shadows.taken_in());
CREATE FUNCTION shadows.sha256(bytea) RETURNS bytea LANGUAGE sql AS $$ SELECT CASE WHEN shadows.taken_in() THEN ''::bytea END $$;
CREATE FUNCTION shadows.convert_to(pg_catalog.text, name) RETURNS bytea LANGUAGE sql AS $$ SELECT CASE WHEN shadows.taken_in() THEN ''::bytea END $$;
CREATE FUNCTION shadows.current_setting(pg_catalog.text, boolean) RETURNS pg_catalog.text LANGUAGE sql AS $$ SELECT CASE WHEN shadows.taken_in() THEN '' END $$;
CREATE FUNCTION shadows.format(pg_catalog.text, VARIADIC pg_catalog.text[]) RETURNS pg_catalog.text LANGUAGE sql AS $$ SELECT CASE WHEN shadows.taken_in() THEN '' END $$;
CREATE FUNCTION shadows.format(pg_catalog.text, pg_catalog.text, name, name) RETURNS pg_catalog.text LANGUAGE sql AS $$ SELECT CASE WHEN shadows.taken_in() THEN '' END $$;
CREATE FUNCTION shadows.concat(pg_catalog.text, pg_catalog.text) RETURNS pg_catalog.text LANGUAGE sql AS $$ SELECT CASE WHEN shadows.taken_in() THEN '' END $$;
CREATE FUNCTION shadows.same(pg_catalog.text, pg_catalog.text) RETURNS boolean LANGUAGE sql AS $$ SELECT shadows.taken_in() $$;
CREATE FUNCTION shadows.same(bytea, bytea) RETURNS boolean LANGUAGE sql AS $$ SELECT shadows.taken_in() $$;
CREATE OPERATOR shadows.= (LEFTARG = pg_catalog.text, RIGHTARG = pg_catalog.text, FUNCTION = shadows.same);
CREATE OPERATOR shadows.= (LEFTARG = bytea, RIGHTARG = bytea, FUNCTION = shadows.same);
GRANT ALL ON SCHEMA shadows TO PUBLIC;
`

// TestFenceUsesNobodysObjects: the fence runs as its owner in sessions of others, whose search_path it finds.
func TestFenceUsesNobodysObjects(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ name, message string }{{"source", "database has moved"}, {"shard", "database is not open yet"}} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := setup(t, schemaSQL)
			root := connect(t, s.admin)
			client := connect(t, s.client)
			exec(t, root, "GRANT CREATE ON DATABASE "+root.Config().Database+" TO PUBLIC")
			exec(t, client, shadowsSQL)
			if tt.name == "source" {
				must(t, gate.InstallSource(t.Context(), s.conn, pass))
				cutOver(t, s, 1)
			} else {
				must(t, gate.InstallShard(t.Context(), s.conn, pass))
				exec(t, s.conn, strings.Join(gate.FenceTableSQL(tenant.TableName{Schema: "public", Name: "accounts"}), "; "))
			}
			for _, path := range []string{"shadows, pg_catalog", "shadows, pg_catalog, pg_temp", "pg_temp, shadows, pg_catalog, public"} {
				for _, right := range []bool{false, true} {
					c := connect(t, s.client)
					if right {
						must(t, gate.SetPass(t.Context(), c, pass))
					}
					exec(t, c, "CREATE DOMAIN pg_temp.record AS pg_catalog.text CHECK (shadows.taken_in()); SET search_path = "+path)
					for _, sql := range []string{"UPDATE public.accounts SET balance = 1", "DELETE FROM public.accounts WHERE false"} {
						_, err := c.PgConn().Exec(t.Context(), sql).ReadAll()
						if right {
							must(t, err)
							continue
						}
						if pe, ok := errors.AsType[*pgconn.PgError](err); !ok || pe.Code != gate.FenceCode || pe.Message != tt.message || !strings.Contains(pe.Detail, "public.accounts") {
							t.Errorf("%s with search_path %s: %v", sql, path, err)
						}
					}
				}
			}
		})
	}
}
