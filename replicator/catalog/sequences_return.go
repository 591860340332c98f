package catalog

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/tenant"
)

// ReturnSequences takes FreezeSequences back for a source that gets the writes again: in the transaction that decides, each
// sequence has its former bounds back and goes on beyond every value that a shard has handed out, with room for what the
// shards hand out between being read and the decision. values are the source's as they were before they were frozen, shards
// what ReadSequences read at each shard.
//
// SequenceSet.Value is what the next nextval() returns. A sequence that has no room left stands at its end, as it does at
// the shards: nextval() fails there too.
func ReturnSequences(ctx context.Context, tx pgx.Tx, values []tenant.SequenceValue, shards [][]tenant.SequenceValue) ([]tenant.SequenceSet, error) {
	batch := &pgx.Batch{}
	out := make([]tenant.SequenceSet, 0, len(values))
	for i, v := range values {
		last := make([]int64, 0, len(shards))
		for _, s := range shards {
			if len(s) != len(values) || s[i].Name != v.Name {
				return nil, fmt.Errorf("return sequences: the shards' are not the source's")
			}
			last = append(last, s[i].Last)
		}
		next, room := returnValue(v, last, Step(len(shards)))
		cycle := "NO CYCLE"
		if v.Cycle {
			cycle = "CYCLE"
		}
		// In one statement, which makes a new file for the sequence: its value is then taken back with the transaction.
		batch.Queue(fmt.Sprintf("ALTER SEQUENCE %s MINVALUE %d MAXVALUE %d START WITH %d %s RESTART WITH %d", v.Name.Quoted(), v.Min, v.Max, v.Start, cycle, next))
		if !room {
			batch.Queue(fmt.Sprintf("SELECT setval(%s::regclass, %d, true)", tenant.QuoteLiteral(v.Name.Quoted()), next))
		}
		out = append(out, tenant.SequenceSet{Name: v.Name.String(), Value: next})
	}
	if batch.Len() == 0 {
		return out, nil
	}
	if err := tx.SendBatch(ctx, batch).Close(); err != nil {
		return nil, fmt.Errorf("return sequences: %w", err)
	}
	return out, nil
}

// returnValue is what the source's sequence goes on with; room is false when it is at its end.
func returnValue(v tenant.SequenceValue, shards []int64, step int) (next int64, room bool) {
	inc := v.Increment
	if inc == 0 {
		inc = 1
	}
	top := v.Last
	for _, s := range shards {
		if ahead(s, top, inc) {
			top = s
		}
	}
	// As much headroom as there is space for.
	for _, many := range []int64{SequenceHeadroom * int64(step), SequenceHeadroom, 1} {
		head, ok1 := mul(inc, many)
		next, ok2 := add(top, head)
		if ok1 && ok2 && next <= v.Max && next >= v.Min {
			return next, true
		}
	}
	switch {
	case v.Cycle && inc > 0:
		return v.Min, true
	case v.Cycle:
		return v.Max, true
	}
	return min(max(top, v.Min), v.Max), false
}
