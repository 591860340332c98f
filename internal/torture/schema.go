package torture

import (
	"context"
	"fmt"
	"strconv"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/tenant"
)

// RealmKey is the column that names a row's realm.
const RealmKey = "realm_id"

// ReferenceTable is the same on every shard.
const ReferenceTable = "public.rates"

const (
	accountsPerRealm  = 40
	openingBalance    = 1000
	documentsPerRealm = 25
	seatsPerRealm     = 30
	travellers        = 400 // in all
	measuresPerRealm  = 30
	rates             = 20
	crowdPerRealm     = 10
)

const schemaSQL = `
CREATE TYPE mood AS ENUM ('calm', 'busy');
CREATE TABLE journal (realm_id text NOT NULL, id bigint NOT NULL, op text NOT NULL, at timestamptz NOT NULL DEFAULT clock_timestamp(), PRIMARY KEY (realm_id, id));
CREATE TABLE accounts (realm_id text NOT NULL, id int NOT NULL, balance bigint NOT NULL, touched bigint NOT NULL DEFAULT 0, PRIMARY KEY (realm_id, id));
CREATE TABLE documents (realm_id text NOT NULL, id bigint NOT NULL, version int NOT NULL DEFAULT 0, title text, body text, PRIMARY KEY (realm_id, id));
ALTER TABLE documents ALTER COLUMN body SET STORAGE EXTERNAL;
CREATE TABLE seats (realm_id text NOT NULL, id int NOT NULL, number int NOT NULL, rank int NOT NULL, PRIMARY KEY (realm_id, id),
	UNIQUE (realm_id, number), UNIQUE (realm_id, rank) DEFERRABLE INITIALLY DEFERRED);
CREATE TABLE travellers (realm_id text NOT NULL, id bigint NOT NULL, trips int NOT NULL DEFAULT 0, note text, PRIMARY KEY (realm_id, id));
CREATE TABLE bulk (realm_id text NOT NULL, id bigint NOT NULL, n int NOT NULL, pad text, PRIMARY KEY (realm_id, id));
CREATE TABLE scratch (realm_id text NOT NULL, id bigint NOT NULL, v int, PRIMARY KEY (realm_id, id));
CREATE TABLE measurements (realm_id text NOT NULL, id int NOT NULL, state text NOT NULL, value numeric, mood mood, PRIMARY KEY (realm_id, id, state)) PARTITION BY LIST (state);
CREATE TABLE measurements_open PARTITION OF measurements FOR VALUES IN ('open');
CREATE TABLE measurements_closed PARTITION OF measurements FOR VALUES IN ('closed') PARTITION BY HASH (id);
CREATE TABLE measurements_closed_0 PARTITION OF measurements_closed FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE measurements_closed_1 PARTITION OF measurements_closed FOR VALUES WITH (MODULUS 2, REMAINDER 1);
CREATE TABLE measurements_other PARTITION OF measurements DEFAULT;
CREATE TABLE crowd (realm_id text NOT NULL, tag text, n int);
ALTER TABLE crowd REPLICA IDENTITY FULL;
CREATE TABLE rates (code text PRIMARY KEY, rate numeric NOT NULL, changes int NOT NULL DEFAULT 0);
CREATE TABLE shape (realm_id text NOT NULL, id bigint NOT NULL, v int, PRIMARY KEY (realm_id, id));
`

// Fill makes the tables and their first rows in an empty database; bulk is how many rows the largest gets.
func Fill(ctx context.Context, dsn tenant.DSN, realms, bulk int) error {
	conn, err := pgx.Connect(ctx, dsn.Reveal())
	if err != nil {
		return fmt.Errorf("fill the source: %w", err)
	}
	defer func() { _ = conn.Close(ctx) }()
	if _, err := conn.Exec(ctx, schemaSQL); err != nil {
		return fmt.Errorf("make the tables: %w", err)
	}
	for _, f := range []struct {
		sql  string
		args []any
	}{
		{`INSERT INTO accounts SELECT 'r' || r, i, $2::bigint FROM generate_series(0, $1::int - 1) r, generate_series(0, $3::int - 1) i`, []any{realms, openingBalance, accountsPerRealm}},
		{`INSERT INTO documents SELECT 'r' || r, r * 1000 + i, 0, 'document ' || i, repeat(md5((r * 1000 + i)::text), 80 + (i * 37) % 200) FROM generate_series(0, $1::int - 1) r, generate_series(0, $2::int - 1) i`, []any{realms, documentsPerRealm}},
		{`INSERT INTO seats SELECT 'r' || r, i, i, i FROM generate_series(0, $1::int - 1) r, generate_series(0, $2::int - 1) i`, []any{realms, seatsPerRealm}},
		{`INSERT INTO travellers SELECT 'r' || (i % $1::int), i, 0, 'began' FROM generate_series(0, $2::int - 1) i`, []any{realms, travellers}},
		{`INSERT INTO measurements SELECT 'r' || r, i, (ARRAY['open','closed','lost'])[1 + i % 3], i, 'calm' FROM generate_series(0, $1::int - 1) r, generate_series(0, $2::int - 1) i`, []any{realms, measuresPerRealm}},
		{`INSERT INTO crowd SELECT 'r' || r, 'same', i % 3 FROM generate_series(0, $1::int - 1) r, generate_series(0, $2::int - 1) i`, []any{realms, crowdPerRealm}},
		{`INSERT INTO rates SELECT 'c' || i, i FROM generate_series(0, $1::int - 1) i`, []any{rates}},
		{`INSERT INTO bulk SELECT 'r' || (i % $1::int), -1 - i, i, repeat(md5(i::text), 4) FROM generate_series(0, $2::int - 1) i`, []any{realms, bulk}},
		{`INSERT INTO shape SELECT 'r' || (i % $1::int), -1 - i, i FROM generate_series(0, 99) i`, []any{realms}},
	} {
		if _, err := conn.Exec(ctx, f.sql, f.args...); err != nil {
			return fmt.Errorf("fill the tables: %w", err)
		}
	}
	if _, err := conn.Exec(ctx, `ANALYZE`); err != nil {
		return fmt.Errorf("analyse the tables: %w", err)
	}
	return nil
}

// Money is the sum of all balances, which no transaction of the workload changes.
func Money(realms int) int64 { return int64(realms) * accountsPerRealm * openingBalance }

func realmName(i int) string { return "r" + strconv.Itoa(i) }
