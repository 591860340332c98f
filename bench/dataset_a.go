package main

import "fmt"

// Sizes of dataset A at scale 1.
const (
	branches           = 50
	accountsPerBranch  = 100_000
	documentsRows      = 1_000_000
	documentRealms     = 1000
	tellersPerBranch   = 10
	leastRowsPerBranch = 20
)

// DatasetA is pgbench's schema at scale 50 and a table of documents: a uuid key, a realm (1,000 of them, skewed: of 1,000
// rows about 100 are in the first realm), a table name, jsonb of about 500 bytes, a time; two further indexes.
func DatasetA() *Dataset {
	return &Dataset{
		Name:   "A",
		Title:  "pgbench scale 50 (5M accounts) and 1M documents (uuid key, 1,000 skewed realms, jsonb of about 500 bytes), primary keys and 2 further indexes",
		Tables: []string{"pgbench_accounts", "documents", "pgbench_branches", "pgbench_tellers", "pgbench_history"},
		Realm: []string{
			"--realm-key", "bid", "--table-key", "public.documents=realm",
			"--realms-never-change", "public.pgbench_accounts,public.pgbench_tellers,public.documents",
			"--accept", "constraint-without-realm:public.pgbench_accounts_pkey", "--accept", "constraint-without-realm:public.pgbench_tellers_pkey",
			"--accept", "constraint-without-realm:public.documents_pkey",
		},
		SQL: func(scale float64) []string {
			perBranch := max(int(accountsPerBranch*scale), leastRowsPerBranch)
			return append(pgbenchTables(perBranch), documentsSQL(max(int(documentsRows*scale), documentRealms))...)
		},
	}
}

// pgbenchTables are as pgbench makes them, but for bid, which is NOT NULL everywhere, and for the identity of the history, which
// has no key.
func pgbenchTables(perBranch int) []string {
	return []string{
		`CREATE TABLE pgbench_branches (bid int NOT NULL, bbalance int, filler char(88)) WITH (fillfactor = 100)`,
		`CREATE TABLE pgbench_tellers (tid int NOT NULL, bid int NOT NULL, tbalance int, filler char(84)) WITH (fillfactor = 100)`,
		`CREATE TABLE pgbench_accounts (aid int NOT NULL, bid int NOT NULL, abalance int, filler char(84)) WITH (fillfactor = 100)`,
		`CREATE TABLE pgbench_history (tid int, bid int NOT NULL, aid int, delta int, mtime timestamp, filler char(22))`,
		`ALTER TABLE pgbench_history REPLICA IDENTITY FULL`,
		fmt.Sprintf(`INSERT INTO pgbench_branches SELECT b, 0, '' FROM generate_series(1, %d) b`, branches),
		fmt.Sprintf(`INSERT INTO pgbench_tellers SELECT t, (t - 1) / %d + 1, 0, '' FROM generate_series(1, %d) t`, tellersPerBranch, branches*tellersPerBranch),
		fmt.Sprintf(`INSERT INTO pgbench_accounts SELECT a, (a - 1) / %d + 1, 0, '' FROM generate_series(1, %d) a`, perBranch, branches*perBranch),
		`ALTER TABLE pgbench_branches ADD PRIMARY KEY (bid)`,
		`ALTER TABLE pgbench_tellers ADD PRIMARY KEY (tid)`,
		`ALTER TABLE pgbench_accounts ADD PRIMARY KEY (aid)`,
	}
}

// documentsSQL makes n documents. The realm is the cube of an even number: few realms have most rows.
func documentsSQL(n int) []string {
	return []string{
		`CREATE TABLE documents (id uuid NOT NULL, realm text NOT NULL, tbl text NOT NULL, doc jsonb NOT NULL, created_at timestamptz NOT NULL)`,
		fmt.Sprintf(`INSERT INTO documents SELECT md5(g::text)::uuid, 'realm-' || floor(%d * power((hashint8extended(g, 7) & 1048575) / 1048576.0::float8, 3)),
			(ARRAY['items', 'notes', 'people', 'files'])[1 + (g %% 4)],
			('{"n": ' || g || ', "title": "' || md5('t' || g) || '", "done": ' || (g %% 3 = 0) || ', "tags": ["' || substr(md5('a' || g), 1, 6) || '", "' || substr(md5('b' || g), 1, 6)
				|| '"], "body": "' || repeat(md5('c' || g) || ' ', 11) || '"}')::jsonb,
			timestamptz '2026-01-01 00:00:00Z' + g * interval '7 seconds' FROM generate_series(1, %d) g`, documentRealms, n),
		`ALTER TABLE documents ADD PRIMARY KEY (id)`,
		`CREATE INDEX documents_realm ON documents (realm, created_at)`,
		`CREATE INDEX documents_tbl ON documents (tbl, created_at)`,
	}
}
