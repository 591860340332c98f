package schema

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/rehomedb/rehome/tenant"
)

// A copy that was interrupted goes on under a later snapshot, whose schema may be another one. Its tables at the shards are
// those of the slot, and the stream changes them from there: what is built behind the copy must be of the slot's schema as
// well. It is kept at the shard, which gets all of it anyway: post-data, and of pre-data what it is attached to.

// keptItem is an item as it is kept.
type keptItem struct {
	ID        int    `json:"id"`
	Tag       string `json:"tag"`
	Desc      string `json:"desc"`
	Section   int    `json:"section"`
	SQL       string `json:"sql,omitempty"`
	Namespace string `json:"namespace,omitempty"`
	TableAM   string `json:"table_am,omitempty"`
	Deps      []int  `json:"deps,omitempty"`
	Key       string `json:"key"`
}

type keptUnique struct {
	Table      tenant.TableName `json:"table"`
	Index      tenant.TableName `json:"index"`
	Constraint string           `json:"constraint,omitempty"`
	Columns    []string         `json:"columns"`
	Exclusion  bool             `json:"exclusion,omitempty"`
}

type keptArchive struct {
	Items        []keptItem         `json:"items"`
	Accept       []string           `json:"accept"`
	Skip         map[string]string  `json:"skip"`
	ForeignKeys  map[string]string  `json:"foreign_keys"`
	Materialized []tenant.TableName `json:"materialized"`
	Uniques      []keptUnique       `json:"uniques"`
}

// settings are items that are statements of pre-data, and needed for every session.
func (it *item) settings() bool { return it.desc == "STDSTRINGS" }

// Keep records at a shard what RestorePost builds there, for Kept. tx is the caller's, so that it can be fenced.
func (a *Archive) Keep(ctx context.Context, tx pgx.Tx, replication string) error {
	if a.items == nil {
		return errNotDumped
	}
	doc := keptArchive{Accept: a.accept, Skip: a.skip, ForeignKeys: a.foreignKeys, Materialized: a.materialized}
	for _, it := range a.items {
		k := keptItem{ID: it.id, Tag: it.tag, Desc: it.desc, Section: it.section, Namespace: it.namespace, TableAM: it.tableAM, Deps: it.deps, Key: it.key}
		if it.section == sectionPost || it.settings() {
			k.SQL = it.sql
		}
		doc.Items = append(doc.Items, k)
	}
	for _, u := range a.uniques {
		doc.Uniques = append(doc.Uniques, keptUnique{Table: u.table, Index: u.index, Constraint: u.constraint, Columns: u.columns, Exclusion: u.exclusion})
	}
	var packed bytes.Buffer
	w := gzip.NewWriter(&packed)
	err := json.NewEncoder(w).Encode(doc)
	if err = errors.Join(err, w.Close()); err != nil {
		return fmt.Errorf("keep the schema: %w", err)
	}
	_, err = tx.Exec(ctx, `INSERT INTO rehome.ddl_kept (replication, doc) VALUES ($1, $2) ON CONFLICT (replication) DO UPDATE SET doc = excluded.doc`, replication, packed.Bytes())
	if err != nil {
		return fmt.Errorf("keep the schema: %w", err)
	}
	return nil
}

// Kept is the archive that a shard keeps, for RestorePost; nil: it keeps none.
func Kept(ctx context.Context, conn *pgx.Conn, replication string, log *slog.Logger) (*Archive, error) {
	var packed []byte
	err := conn.QueryRow(ctx, `SELECT doc FROM rehome.ddl_kept WHERE replication = $1`, replication).Scan(&packed)
	var pg *pgconn.PgError
	if errors.Is(err, pgx.ErrNoRows) || errors.As(err, &pg) && pg.Code == "42P01" {
		return nil, nil
	}
	var doc keptArchive
	if err == nil {
		doc, err = unpack(packed)
	}
	if err != nil {
		return nil, fmt.Errorf("read the schema that is kept: %w", err)
	}
	a := &Archive{items: []*item{}, accept: doc.Accept, skip: doc.Skip, foreignKeys: doc.ForeignKeys, materialized: doc.Materialized, log: log}
	for _, k := range doc.Items {
		a.items = append(a.items, &item{id: k.ID, tag: k.Tag, desc: k.Desc, section: k.Section, sql: k.SQL, namespace: k.Namespace, tableAM: k.TableAM, deps: k.Deps, key: k.Key})
	}
	for _, u := range doc.Uniques {
		a.uniques = append(a.uniques, unique{table: u.Table, index: u.Index, constraint: u.Constraint, columns: u.Columns, exclusion: u.Exclusion})
	}
	return a, nil
}

func unpack(packed []byte) (doc keptArchive, err error) {
	r, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		return doc, err
	}
	raw, err := io.ReadAll(r)
	if err == nil {
		err = json.Unmarshal(raw, &doc)
	}
	return doc, err
}
