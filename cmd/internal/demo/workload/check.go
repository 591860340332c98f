package workload

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/rehomedb/rehome/tenant"
)

// CheckResult is one thing that was looked at.
type CheckResult struct {
	Name   string `json:"name"` // kebab-case
	OK     bool   `json:"ok"`
	Figure int64  `json:"figure"` // how much was looked at
	Unit   string `json:"unit"`   // of what
	Detail string `json:"detail"` // in words; what is wrong, if anything
}

// Names of the checks.
const (
	CheckPresent     = "acknowledged-writes-present"
	CheckOnce        = "no-write-doubled-or-invented"
	CheckWhole       = "writes-whole-or-not-at-all"
	CheckDocuments   = "documents-as-acknowledged"
	CheckPlaced      = "rows-on-their-realms-shard"
	CheckMoney       = "money-conserved"
	CheckBalances    = "balances-explained-by-transfers"
	CheckStart       = "rows-of-the-start-kept"
	CheckReference   = "reference-tables-equal"
	CheckSequences   = "sequence-values-unique"
	CheckConstraints = "constraints-and-indexes-valid"
	CheckFenced      = "source-refuses-writes"
)

// complaints is how many wrong rows a detail names.
const complaints = 5

// checker carries what the checks look at.
type checker struct {
	ledger    *Ledger
	placement tenant.Placement
	shards    map[string]*pgxpool.Pool
	names     []string // of the shards, sorted
	source    *pgxpool.Pool

	entries []entry
	events  map[string][]place // by the id of a write
}

// place is where a row was found.
type place struct{ shard, realm string }

// finding is what a check returns: what was looked at and what is wrong.
type finding struct {
	figure int64
	detail string // when all is well
	wrong  []string
}

func (f *finding) complain(format string, args ...any) {
	f.wrong = append(f.wrong, fmt.Sprintf(format, args...))
}

// Check looks at the shards (and the source, unless it is nil: gone) after a move. The writers must have stopped. A check
// that cannot be carried out has failed; its detail says why.
func Check(ctx context.Context, ledger *Ledger, placement tenant.Placement, shards map[string]*pgxpool.Pool, source *pgxpool.Pool) []CheckResult {
	c := &checker{
		ledger: ledger, placement: placement, shards: shards, names: slices.Sorted(maps.Keys(shards)), source: source,
		entries: ledger.snapshot(), events: map[string][]place{},
	}
	checks := []struct {
		name, unit string
		run        func(context.Context) (finding, error)
	}{
		{CheckPresent, "acknowledged writes", c.present},
		{CheckOnce, "writes found", c.once},
		{CheckWhole, "writes with their effects", c.whole},
		{CheckDocuments, "documents", c.documents},
		{CheckPlaced, "rows", c.placed},
		{CheckMoney, "cents", c.money},
		{CheckBalances, "accounts", c.balances},
		{CheckStart, "rows", c.start},
		{CheckReference, "rows", c.reference},
		{CheckSequences, "values", c.sequences},
		{CheckConstraints, "constraints and indexes", c.constraints},
	}
	if source != nil {
		checks = append(checks, struct {
			name, unit string
			run        func(context.Context) (finding, error)
		}{CheckFenced, "statements refused", c.fenced})
	}
	loadErr := c.loadEvents(ctx)
	if len(shards) == 0 {
		loadErr = errors.New("there are no shards")
	}
	var results []CheckResult
	for _, check := range checks {
		found, err := finding{}, loadErr
		if err == nil {
			found, err = check.run(ctx)
		}
		r := CheckResult{Name: check.name, Unit: check.unit, Figure: found.figure, OK: err == nil && len(found.wrong) == 0, Detail: found.detail}
		switch {
		case err != nil:
			r.Detail = "could not be checked: " + err.Error()
		case len(found.wrong) > complaints:
			r.Detail = fmt.Sprintf("%s; and %d more", strings.Join(found.wrong[:complaints], "; "), len(found.wrong)-complaints)
		case len(found.wrong) > 0:
			r.Detail = strings.Join(found.wrong, "; ")
		}
		results = append(results, r)
	}
	return results
}

// each reads the same rows from every shard; row is called with the values scanned into what was given.
func (c *checker) each(ctx context.Context, sql string, into []any, row func(shard string) error) error {
	for _, name := range c.names {
		rows, err := c.shards[name].Query(ctx, sql)
		if err != nil {
			return fmt.Errorf("shard %s: %w", name, err)
		}
		if _, err := pgx.ForEachRow(rows, into, func() error { return row(name) }); err != nil {
			return fmt.Errorf("shard %s: %w", name, err)
		}
	}
	return nil
}

// loadEvents finds the writers' events; each write has one.
func (c *checker) loadEvents(ctx context.Context) error {
	var id, realm string
	return c.each(ctx, `SELECT id::text, realm_id FROM public.events WHERE payload @> '{"from": "writer"}'`, []any{&id, &realm}, func(shard string) error {
		c.events[id] = append(c.events[id], place{shard, realm})
		return nil
	})
}

func (c *checker) present(context.Context) (finding, error) {
	var f finding
	for _, e := range c.entries {
		if e.outcome != acknowledged {
			continue
		}
		f.figure++
		if len(c.events[e.op.ID]) == 0 {
			f.complain("%s %s of realm %s is missing", e.op.Kind, e.op.ID, e.op.Realm)
		}
	}
	f.detail = fmt.Sprintf("%d acknowledged, none missing", f.figure)
	return f, nil
}

func (c *checker) once(context.Context) (finding, error) {
	f := finding{figure: int64(len(c.events)), detail: "each on one shard, and each was sent by a writer"}
	sent := make(map[string]string, len(c.entries))
	for _, e := range c.entries {
		sent[e.op.ID] = e.op.Realm
	}
	for id, places := range c.events {
		if len(places) > 1 {
			f.complain("write %s is there %d times: %v", id, len(places), places)
		}
		if realm, ok := sent[id]; !ok {
			f.complain("write %s was never sent", id)
		} else if realm != places[0].realm {
			f.complain("write %s was sent for realm %s and is in realm %s", id, realm, places[0].realm)
		}
	}
	return f, nil
}

// whole: an event is there exactly if the rest of its transaction is.
func (c *checker) whole(ctx context.Context) (finding, error) {
	f := finding{}
	type transfer struct {
		from, to int
		cents    int64
		times    int
	}
	transfers := map[string]transfer{}
	var id string
	var t transfer
	err := c.each(ctx, `SELECT id::text, from_account, to_account, (amount * 100)::bigint FROM ledger.transfers WHERE tags = '{writer}'`,
		[]any{&id, &t.from, &t.to, &t.cents}, func(string) error {
			t.times = transfers[id].times + 1
			transfers[id] = t
			return nil
		})
	if err != nil {
		return f, err
	}
	metrics := map[string]int{}
	err = c.each(ctx, `SELECT name FROM public.metrics WHERE length(name) = 36 OR name = 'taken back'`, []any{&id}, func(string) error {
		metrics[id]++
		return nil
	})
	if err != nil {
		return f, err
	}
	undone := 0
	for _, e := range c.entries {
		want := min(len(c.events[e.op.ID]), 1)
		if e.outcome != acknowledged {
			undone += 1 - want
		}
		switch e.op.Kind {
		case KindTransfer:
			got := transfers[e.op.ID]
			if got.times != want {
				f.complain("write %s: %d events and %d transfers", e.op.ID, want, got.times)
			} else if want == 1 && (got.from != e.op.Transfer.From || got.to != e.op.Transfer.To || got.cents != e.op.Transfer.Cents) {
				f.complain("transfer %s is not what was sent", e.op.ID)
			}
			delete(transfers, e.op.ID)
		case KindMetric:
			if metrics[e.op.ID] != want {
				f.complain("write %s: %d events and %d measurements", e.op.ID, want, metrics[e.op.ID])
			}
		}
		f.figure++
	}
	if metrics["taken back"] > 0 {
		f.complain("%d rows that were rolled back to a savepoint", metrics["taken back"])
	}
	for id := range transfers {
		f.complain("transfer %s was never sent", id)
	}
	f.detail = fmt.Sprintf("%d with their effects, %d were refused or never arrived and left nothing", f.figure-int64(undone), undone)
	return f, nil
}
