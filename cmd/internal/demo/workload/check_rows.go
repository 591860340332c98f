package workload

import (
	"context"
	"fmt"
	"strings"
)

// placed recomputes each realm's bucket, and so its shard, here.
func (c *checker) placed(ctx context.Context) (finding, error) {
	f := finding{}
	perShard := map[string]int64{}
	for _, table := range ShardedTables() {
		var realm string
		var n int64
		err := c.each(ctx, `SELECT realm_id, count(*) FROM `+table.Quoted()+` GROUP BY realm_id`, []any{&realm, &n}, func(shard string) error {
			f.figure += n
			perShard[shard] += n
			if owner := c.placement.ShardOf(realm); owner != shard {
				f.complain("%s: %d rows of realm %s are on shard %s and belong to %s", table, n, realm, shard, owner)
			}
			return nil
		})
		if err != nil {
			return f, err
		}
	}
	var parts []string
	for _, name := range c.names {
		parts = append(parts, fmt.Sprintf("%s %d", name, perShard[name]))
	}
	f.detail = "every row is on the shard that owns its realm: " + strings.Join(parts, ", ")
	return f, nil
}

// money: all that there was at the start is still there, in each realm.
func (c *checker) money(ctx context.Context) (finding, error) {
	baseline := c.ledger.Baseline()
	f := finding{detail: fmt.Sprintf("%s in %d realms, as at the start", cents(baseline.TotalCents()), len(baseline.Realms))}
	balances := map[string]int64{}
	var realm string
	var balance int64
	err := c.each(ctx, `SELECT realm_id, (sum(balance) * 100)::bigint FROM ledger.accounts GROUP BY realm_id`, []any{&realm, &balance}, func(string) error {
		balances[realm] += balance
		f.figure += balance
		return nil
	})
	if err != nil {
		return f, err
	}
	if f.figure != baseline.TotalCents() {
		f.complain("%s in all, %s at the start", cents(f.figure), cents(baseline.TotalCents()))
	}
	for _, r := range baseline.Realms {
		if balances[r.ID] != r.OpeningCents {
			f.complain("realm %s has %s and had %s", r.ID, cents(balances[r.ID]), cents(r.OpeningCents))
		}
		delete(balances, r.ID)
	}
	for realm, balance := range balances {
		f.complain("realm %s has %s and was not there", realm, cents(balance))
	}
	return f, nil
}

// balances: each account's balance follows from its transfers. A transfer that is missing or doubled shows here.
func (c *checker) balances(ctx context.Context) (finding, error) {
	f := finding{detail: "each balance is the opening balance and the account's transfers"}
	var realm, have, want string
	var account int
	err := c.each(ctx, `
		SELECT a.realm_id, a.id, balance::text, (opening + coalesce(moved.amount, 0))::text
		FROM ledger.accounts a LEFT JOIN (
			SELECT realm_id, account, sum(amount) AS amount FROM (
				SELECT realm_id, to_account AS account, amount FROM ledger.transfers
				UNION ALL SELECT realm_id, from_account, -amount FROM ledger.transfers) t
			GROUP BY realm_id, account) moved ON moved.realm_id = a.realm_id AND moved.account = a.id`,
		[]any{&realm, &account, &have, &want}, func(shard string) error {
			f.figure++
			if have != want {
				f.complain("account %d of realm %s on shard %s has %s, its transfers make %s", account, realm, shard, have, want)
			}
			return nil
		})
	return f, err
}

// start: what was there before the writers is still there, and nothing more than they added.
func (c *checker) start(ctx context.Context) (finding, error) {
	baseline := c.ledger.Baseline()
	var f finding
	count := func(sql string) (int64, error) {
		var sum, n int64
		err := c.each(ctx, sql, []any{&n}, func(string) error {
			sum += n
			return nil
		})
		return sum, err
	}
	transfers, err := count(`SELECT count(*) FROM ledger.transfers WHERE tags IS DISTINCT FROM '{writer}'`)
	if err != nil {
		return f, err
	}
	events, err := count(`SELECT count(*) FROM public.events WHERE NOT payload @> '{"from": "writer"}'`)
	if err != nil {
		return f, err
	}
	f.figure = transfers + events
	f.detail = fmt.Sprintf("%d transfers and %d events from before the writers", transfers, events)
	if transfers != baseline.Transfers {
		f.complain("%d transfers of the start, there were %d", transfers, baseline.Transfers)
	}
	if events != baseline.Events {
		f.complain("%d events of the start, there were %d", events, baseline.Events)
	}
	return f, nil
}

// sequences: no value was given twice, whichever shard gave it.
func (c *checker) sequences(ctx context.Context) (finding, error) {
	f := finding{detail: "receipts, entries and members' ids were each given once"}
	for _, column := range []struct{ table, name string }{{"ledger.transfers", "receipt"}, {"ledger.transfers", "entry"}, {"public.members", "id"}} {
		seen := map[int64]string{}
		var v int64
		err := c.each(ctx, "SELECT "+column.name+" FROM "+column.table, []any{&v}, func(shard string) error {
			f.figure++
			if other, ok := seen[v]; ok {
				f.complain("%s.%s %d is on shard %s and on %s", column.table, column.name, v, other, shard)
			}
			seen[v] = shard
			return nil
		})
		if err != nil {
			return f, err
		}
	}
	return f, nil
}
