package workload

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Baseline is what a source holds before the writers begin.
type Baseline struct {
	Realms    []Realm
	Transfers int64
	Events    int64
}

// Realm is a realm as the writers and the checks need it.
type Realm struct {
	ID           string
	Accounts     int // their ids are 1…Accounts
	OpeningCents int64
}

// TotalCents is all the money there is.
func (b Baseline) TotalCents() int64 {
	var sum int64
	for _, r := range b.Realms {
		sum += r.OpeningCents
	}
	return sum
}

// ReadBaseline reads a source. Nothing may write to it meanwhile.
func ReadBaseline(ctx context.Context, source *pgxpool.Pool) (Baseline, error) {
	var b Baseline
	rows, err := source.Query(ctx, `
		SELECT realm_id, count(*)::int, (sum(opening) * 100)::bigint FROM ledger.accounts GROUP BY realm_id ORDER BY count(*) DESC, realm_id`)
	if err != nil {
		return b, fmt.Errorf("read the realms: %w", err)
	}
	b.Realms, err = pgx.CollectRows(rows, pgx.RowToStructByPos[Realm])
	if err != nil {
		return b, fmt.Errorf("read the realms: %w", err)
	}
	err = source.QueryRow(ctx, `SELECT (SELECT count(*) FROM ledger.transfers), (SELECT count(*) FROM public.events)`).Scan(&b.Transfers, &b.Events)
	if err != nil {
		return b, fmt.Errorf("count what is there: %w", err)
	}
	return b, nil
}
