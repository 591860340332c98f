package main

import (
	"context"
	"fmt"
	"math/big"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/rehomedb/rehome/internal/pgcluster"
	"github.com/rehomedb/rehome/tenant"
)

// Dataset is what is copied. It is made by the server itself from generate_series, the same in every run.
type Dataset struct {
	Name   string // "A"
	Title  string
	Tables []string // in schema public
	// Realm is how Rehome is told to route: arguments of start-replication.
	Realm []string
	// SQL makes it, for a fraction of the rows.
	SQL func(scale float64) []string

	source  *pgcluster.Cluster
	facts   DatasetFacts
	digests map[string]Digest
	schema  string
	parts   int64 // valid indexes and constraints in schema
}

// DB is the database at the source that has it.
func (d *Dataset) DB() tenant.DSN { return d.source.DSN(d.dbName()) }

func (d *Dataset) dbName() string { return "bench_" + d.Name }

// Rows is how many rows it has.
func (d *Dataset) Rows() int64 { return d.facts.Rows }

// Load makes the dataset at the source, once, and takes the digests of its tables.
func (d *Dataset) Load(ctx context.Context, b *Bench) error {
	if d.source != nil {
		return nil
	}
	d.source = b.Rig.Source
	began := time.Now()
	if err := CreateDatabase(ctx, d.source, d.dbName()); err != nil {
		return err
	}
	if err := Exec(ctx, d.DB(), d.SQL(b.Options.Scale)...); err != nil {
		return fmt.Errorf("make dataset %s: %w", d.Name, err)
	}
	if err := Exec(ctx, d.DB(), "VACUUM (ANALYZE, FREEZE)"); err != nil {
		return err
	}
	var err error
	d.facts = DatasetFacts{Name: d.Name, Title: d.Title, LoadSeconds: time.Since(began).Seconds()}
	if d.digests, err = d.Digests(ctx, d.DB()); err != nil {
		return err
	}
	for _, g := range d.digests {
		d.facts.Rows += g.Rows
	}
	if d.facts.Bytes, err = Scalar[int64](ctx, d.DB(), `SELECT sum(pg_total_relation_size(c.oid))::bigint FROM pg_class c WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r'`); err != nil {
		return err
	}
	if d.schema, err = Scalar[string](ctx, d.DB(), schemaSQL); err != nil {
		return err
	}
	if d.parts, err = Scalar[int64](ctx, d.DB(), partsSQL); err != nil {
		return err
	}
	b.Results.Datasets = append(b.Results.Datasets, d.facts)
	return nil
}

// Digest is the content of a table: it does not depend on the order of its rows, and those of parts of a table add up.
type Digest struct {
	Rows int64
	Sum  string // of hashtextextended(row::text, 0)
}

// digestSQL reads a table as a person would who compares two databases.
func digestSQL(table string) string {
	return "SELECT count(*), coalesce(sum(hashtextextended(t::text, 0)), 0)::text FROM " + tenant.QuoteIdent(table) + " t"
}

// Digests reads all tables at all places and adds up what they have of each.
func (d *Dataset) Digests(ctx context.Context, dsns ...tenant.DSN) (map[string]Digest, error) {
	parts := make([]map[string]Digest, len(dsns))
	g, ctx := errgroup.WithContext(ctx)
	for i, dsn := range dsns {
		g.Go(func() (err error) {
			parts[i], err = d.digestsOf(ctx, dsn)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	all := map[string]Digest{}
	for _, t := range d.Tables {
		sum, total := new(big.Int), int64(0)
		for _, p := range parts {
			n, ok := new(big.Int).SetString(p[t].Sum, 10)
			if !ok {
				return nil, fmt.Errorf("the digest of table %s is %q", t, p[t].Sum)
			}
			sum.Add(sum, n)
			total += p[t].Rows
		}
		all[t] = Digest{Rows: total, Sum: sum.String()}
	}
	return all, nil
}

// Check says what differs between the source and what was copied to all targets together.
func (d *Dataset) Check(ctx context.Context, targets ...tenant.DSN) error {
	got, err := d.Digests(ctx, targets...)
	if err != nil {
		return err
	}
	for _, t := range d.Tables {
		if got[t] != d.digests[t] {
			return fmt.Errorf("the data differ: table %s has %d rows with digest %s, the source %d with %s", t, got[t].Rows, got[t].Sum, d.digests[t].Rows, d.digests[t].Sum)
		}
	}
	for i, dsn := range targets {
		there, err := Scalar[string](ctx, dsn, schemaSQL)
		if err != nil {
			return err
		}
		if there != d.schema {
			return fmt.Errorf("the schema differs: target %d has %s; the source has %s", i+1, there, d.schema)
		}
	}
	return nil
}

// schemaSQL lists every column, index and constraint of a database's own tables, as far as they are valid.
const schemaSQL = `SELECT coalesce(string_agg(line, '; ' ORDER BY line COLLATE "C"), '') FROM (
	SELECT pg_get_indexdef(indexrelid) FROM pg_index JOIN pg_class c ON c.oid = indrelid WHERE c.relnamespace = 'public'::regnamespace AND indisvalid AND indisready
	UNION ALL SELECT conrelid::regclass || ' ' || conname || ' ' || pg_get_constraintdef(oid) FROM pg_constraint WHERE connamespace = 'public'::regnamespace AND convalidated
	UNION ALL SELECT a.attrelid::regclass || '.' || a.attname || ' ' || format_type(a.atttypid, a.atttypmod) FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
		WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r' AND a.attnum > 0 AND NOT a.attisdropped) l(line)`

// partsSQL counts what schemaSQL lists, columns apart: cheap enough to be asked again and again.
const partsSQL = `SELECT (SELECT count(*) FROM pg_index JOIN pg_class c ON c.oid = indrelid WHERE c.relnamespace = 'public'::regnamespace AND indisvalid AND indisready)
	+ (SELECT count(*) FROM pg_constraint WHERE connamespace = 'public'::regnamespace AND convalidated)`
