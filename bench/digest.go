package main

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/rehomedb/rehome/tenant"
)

// digestSessions read the tables of one database side by side: nobody's figure depends on it.
const digestSessions = 2

func (d *Dataset) digestsOf(ctx context.Context, dsn tenant.DSN) (map[string]Digest, error) {
	got := make([]Digest, len(d.Tables))
	next := make(chan int, len(d.Tables))
	for i := range d.Tables {
		next <- i
	}
	close(next)
	g, ctx := errgroup.WithContext(ctx)
	for range min(digestSessions, len(d.Tables)) {
		g.Go(func() error {
			c, err := pgx.Connect(ctx, dsn.Reveal())
			if err != nil {
				return fmt.Errorf("connect: %w", err)
			}
			defer c.Close(context.WithoutCancel(ctx))
			for i := range next {
				if err := c.QueryRow(ctx, digestSQL(d.Tables[i])).Scan(&got[i].Rows, &got[i].Sum); err != nil {
					return fmt.Errorf("read table %s: %w", d.Tables[i], err)
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	all := map[string]Digest{}
	for i, t := range d.Tables {
		all[t] = got[i]
	}
	return all, nil
}
