package replicator_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/replicator"
	"github.com/rehomedb/rehome/replicator/verify"
	"github.com/rehomedb/rehome/tenant"
)

func (b *backRig) verify(opts replicator.VerifyOptions) (tenant.Verification, error) {
	return b.back.Verify(within(b.t), replicator.BackVerifyOptions{Catalogue: b.forward.Catalogue()}, opts)
}

func (b *backRig) mustVerify() tenant.Verification {
	b.t.Helper()
	v, err := b.verify(replicator.VerifyOptions{})
	if err != nil {
		b.t.Fatal(err)
	}
	return v
}

// write changes rows at a shard, also such as move between shards and of reference tables, until the context ends.
func (b *backRig) write(ctx context.Context, shard int, done *atomic.Int64) error {
	c, err := pgx.Connect(ctx, b.shards[shard].DSN.Reveal())
	if err != nil {
		return err
	}
	defer func() { _ = c.Close(context.WithoutCancel(ctx)) }()
	realms := b.realmsOf(shard, 3)
	for i := 0; ctx.Err() == nil; i++ {
		id := int64(shard+1)*1_000_000 + int64(i) // beyond the rows that were copied
		for _, q := range []struct {
			sql  string
			args []any
		}{
			{`INSERT INTO items (realm_id, id, n, big) VALUES ($1, $2, 1, repeat('y', 3000))`, []any{realms[i%3], id}},
			{`UPDATE items SET n = n + 1 WHERE id BETWEEN $1::bigint - 20 AND $1`, []any{id}},
			{`DELETE FROM items WHERE id = $1::bigint - 30`, []any{id}},
			{`INSERT INTO logs VALUES ($1, 'line')`, []any{realms[i%3]}},
		} {
			if _, err := c.Exec(ctx, q.sql, q.args...); err != nil {
				if ctx.Err() != nil {
					return nil
				}
				return err
			}
		}
		done.Add(1)
	}
	return nil
}

// While all shards take writes, both sides are equal at one cut; and a row that is wrong at the source is found.
func TestBackVerifies(t *testing.T) {
	t.Parallel()
	b := newBackRig(t, 3, backOptions, backDDL)
	ctx, stop := context.WithCancel(t.Context())
	var writers sync.WaitGroup
	counts := make([]atomic.Int64, len(b.shards))
	for i := range b.shards {
		writers.Go(func() {
			if err := b.write(ctx, i, &counts[i]); err != nil {
				t.Errorf("write at shard %d: %v", i, err)
			}
		})
	}
	t.Cleanup(func() { stop(); writers.Wait() })
	for i := range counts {
		eventually(t, "writes", func() bool { return counts[i].Load() > 20 })
	}
	// Reference tables come from their home shard only; what is written elsewhere is not carried.
	exec(t, b.clients[0], `UPDATE units SET factor = factor + 1`)
	exec(t, b.clients[1], `INSERT INTO units VALUES ('stray', 0)`)
	for i := range 3 {
		before := counts[0].Load()
		v := b.mustVerify()
		if !v.Clean || v.Rows == 0 || v.Direction != tenant.DirectionBack || len(v.Shards) != 3 || v.LSN == 0 || v.Shards[2].LSN == 0 {
			t.Fatalf("verification %d: %+v", i, v)
		}
		t.Logf("%d rows in %s, %d attempts, while %d rounds were written", v.Rows, v.FinishedAt.Sub(v.StartedAt), v.Attempts, counts[0].Load()-before)
	}
	if counts[0].Load() < 30 {
		t.Error("nothing was written meanwhile")
	}

	// A row that differs at the source, one that is missing there, and one of a reference table.
	one, two := scalar[int64](t, b.clients[2], `SELECT min(id) FROM items WHERE id <= 200`), scalar[int64](t, b.clients[2], `SELECT max(id) FROM items WHERE id <= 200`)
	exec(t, b.srcDB, fmt.Sprintf(`SET rehome.pass = '%s'; UPDATE items SET big = 'wrong' WHERE id = %d; DELETE FROM items WHERE id = %d; UPDATE units SET factor = 99 WHERE name = 'm'`, pass.Reveal(), one, two))
	v := b.mustVerify()
	var kinds []string
	for _, tv := range v.Tables {
		for _, d := range tv.Differences {
			kinds = append(kinds, tv.Table+" "+d.Kind+" "+d.Key)
		}
	}
	text := fmt.Sprint(kinds)
	for _, want := range []string{"public.items different", "public.items extra", "public.units different"} {
		if !strings.Contains(text, want) {
			t.Errorf("want %s in %s", want, text)
		}
	}
	if v.Clean || len(kinds) != 3 {
		t.Errorf("clean %v, differences %s", v.Clean, text)
	}
	if _, err := b.verify(replicator.VerifyOptions{Repair: true}); err == nil || tenant.AsError(err).Code != "no-repair" {
		t.Errorf("a repair: %v", err)
	}
	if _, err := b.forward.Verify(within(t), replicator.VerifyOptions{}); err == nil || tenant.AsError(err).Code != "cut-over" {
		t.Errorf("the forward comparison while the shards write: %v", err)
	}
}

// A row on a shard that does not own its realm is carried back like any other: it is named, and no difference.
func TestBackVerifiesMisplacedRows(t *testing.T) {
	if os.Getenv("REHOME_LONG") == "" {
		return // make long
	}
	t.Parallel()
	b := newBackRig(t, 2, backOptions, backDDL)
	exec(t, b.clients[0], `INSERT INTO items (realm_id, id, n) VALUES ($1, 9000, 1)`, b.realmsOf(1, 1)[0])
	b.settle()
	v := b.mustVerify()
	misplaced := int64(0)
	for _, tv := range v.Tables {
		misplaced += tv.Misplaced
	}
	if !v.Clean || misplaced != 1 {
		t.Errorf("%d misplaced: %+v", misplaced, v)
	}
	// What was found equal is not compared again, and tells so.
	var parts []verify.Part
	v, err := b.verify(replicator.VerifyOptions{OnPart: func(p verify.Part) error { parts = append(parts, p); return nil }})
	if err != nil || !v.Clean || len(parts) == 0 {
		t.Fatalf("%v %+v %v", err, v, parts)
	}
	exec(t, b.clients[1], `INSERT INTO logs VALUES ($1, 'later')`, b.realmsOf(1, 1)[0])
	b.settle()
	again, err := b.verify(replicator.VerifyOptions{Done: parts})
	if err != nil || !again.Clean || again.FirstLSN != v.LSN {
		t.Errorf("gone on with: %v, first %s, want %s: %+v", err, again.FirstLSN, v.LSN, again)
	}
}

// Lanes that cannot come together are let go, and whoever holds a slot's creation up is named or waited for.
func TestBackVerifyGivesUp(t *testing.T) {
	if os.Getenv("REHOME_LONG") == "" {
		return // make long
	}
	t.Parallel()
	b := newBackRig(t, 2, backOptions, backDDL)
	// A row that two shards hold: the second lane waits for the first to let go of it, for longer than any lane stands.
	realm := b.realmsOf(0, 1)[0]
	exec(t, b.clients[0], `INSERT INTO items (realm_id, id, n) VALUES ($1, 7000, 1)`, realm)
	b.settle()
	exec(t, b.clients[1], `INSERT INTO items (realm_id, id, n) VALUES ($1, 7000, 2)`, realm)
	eventually(t, "the lane waits", func() bool { return strings.Contains(b.back.Progress().Reason, "7000") })
	ctx, cancel := context.WithTimeoutCause(t.Context(), 4*time.Second, errors.New("no longer wanted"))
	defer cancel()
	began := time.Now()
	if _, err := b.back.Verify(ctx, replicator.BackVerifyOptions{Catalogue: b.forward.Catalogue()}, replicator.VerifyOptions{}); err == nil {
		t.Error("it was compared over a lane that waits")
	}
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("giving up took %s", took)
	}
	exec(t, b.clients[0], `DELETE FROM items WHERE id = 7000`)
	b.settle()
	if v := b.mustVerify(); !v.Clean {
		t.Errorf("%+v", v)
	}
	// A transaction at a shard's server is waited for, while the lanes go on.
	hold := open(t, b.shards[1].DSN)
	exec(t, hold, `BEGIN; INSERT INTO logs VALUES ('held', 'up')`)
	done := make(chan error, 1)
	go func() {
		v, err := b.verify(replicator.VerifyOptions{})
		if err == nil && !v.Clean {
			err = fmt.Errorf("not clean: %+v", v)
		}
		done <- err
	}()
	for range 3 {
		exec(t, b.clients[0], `UPDATE items SET n = n + 1`)
		n := scalar[int](t, b.clients[0], `SELECT sum(n)::int FROM items`)
		eventually(t, "the other lane goes on", func() bool {
			return scalar[int](t, b.srcDB, `SELECT coalesce(sum(n), 0)::int FROM items`) >= n
		})
	}
	exec(t, hold, `COMMIT`)
	if err := <-done; err != nil {
		t.Error(err)
	}
	// When a rollback begins nothing is waited for.
	var closed atomic.Bool
	closed.Store(true)
	_, err := b.back.Verify(within(t), replicator.BackVerifyOptions{Catalogue: b.forward.Catalogue(), Open: func() bool { return !closed.Load() }}, replicator.VerifyOptions{})
	if !errors.Is(err, replicator.ErrNotCutOver) {
		t.Errorf("while a rollback is under way: %v", err)
	}
}
