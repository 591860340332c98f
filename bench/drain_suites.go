package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
)

// The databases of the source that are followed.
const (
	smallDB = "bench_small"
	tpcbDB  = "bench_tpcb"
)

// newSuite makes a source database and a server. What it made is undone by close, also when it fails half-way.
func newSuite(ctx context.Context, b *Bench, round int, database, realm string, fill func(context.Context, *drainBed) error) (*drainSuite, error) {
	s := &drainSuite{bench: b, round: round, run: b.newRun(database, "", 0), preloaded: b.newRun(database, "", 0), out: map[string]bool{}}
	if PglogicalMissing(ctx, b.Rig) == "" && b.Wants(pglogicalName) && s.due(pglogicalName) {
		// All follow the same source, which has its library loaded. Its target is a server of its own: nobody can drop a database
		// while it is loaded, as Rehome does before it makes one.
		c, err := b.Rig.cluster(ctx, "pglogical-"+database)
		if err != nil {
			return s, err
		}
		s.apart = c
		s.run.Cleanup(func(context.Context) error { return c.Remove() })
		if err := Preload(ctx, b.newRun(database, "", 0), c); err != nil {
			return s, err
		}
		if err := Preload(ctx, s.preloaded, b.Rig.Source); err != nil {
			return s, err
		}
	}
	s.run.Cleanup(func(ctx context.Context) error { return DropDatabase(ctx, b.Rig.Source, database) })
	bed, err := openBed(ctx, b.Rig, database, realm, fill)
	if bed != nil {
		s.bed = bed
		if s.apart != nil {
			bed.apart = append(bed.apart, s.apart)
		}
		s.run.Cleanup(func(ctx context.Context) error { return bed.src.Close(ctx) })
	}
	if err != nil {
		return s, err
	}
	s.server, err = StartServer(ctx, s.run, b.Rig.Targets...)
	return s, err
}

// add lets contenders take part, and their databases be dropped at the end.
func (s *drainSuite) add(who ...follower) {
	s.who = append(s.who, who...)
	for _, f := range who {
		d, ok := f.(interface{ database() string })
		if !ok {
			continue
		}
		for _, c := range s.bench.Rig.Targets {
			s.run.Cleanup(func(ctx context.Context) error { return DropDatabase(ctx, c, d.database()) })
		}
	}
}

// smallSource makes the tables of the small and the large transactions, with their rows.
func smallSource(ctx context.Context, b *Bench, round int, scale float64) (*drainSuite, error) {
	return newSuite(ctx, b, round, smallDB, "realm_id", func(ctx context.Context, bed *drainBed) error { return fillSmall(ctx, bed, scale) })
}

func fillSmall(ctx context.Context, bed *drainBed, scale float64) error {
	return errors.Join(bed.exec(ctx, smallDDL),
		bed.exec(ctx, `INSERT INTO items SELECT 'r' || (g % $1::int), g, 0, 'what an item is about ' || g FROM generate_series(1, $2::int) g`, backlogRealms, scaled(backlogRows, scale)),
		bed.exec(ctx, `CREATE PUBLICATION `+publication+` FOR TABLE items, entries, bulk, pings, arrived`), bed.exec(ctx, `VACUUM ANALYZE`))
}

func smallSuite(ctx context.Context, b *Bench, round int, scale float64) (*drainSuite, error) {
	s, err := smallSource(ctx, b, round, scale)
	if err != nil {
		return s, err
	}
	s.logs = smallBacklogs(scale)
	at := b.Rig.Targets[0]
	s.add(
		&subscription{bed: s.bed, at: at, name: nativeName, db: "d_text", schema: smallDDL},
		&subscription{bed: s.bed, at: at, name: binaryName, db: "d_binary", schema: smallDDL, binary: true},
		&subscription{bed: s.bed, at: at, name: streamName, db: "d_stream", schema: smallDDL, stream: true},
		&slotReader{bed: s.bed},
		&slotReader{bed: s.bed, decode: true},
		&rehomeFollower{bed: s.bed, server: s.server, db: "d1", shards: 1},
		&rehomeFollower{bed: s.bed, server: s.server, db: "d2", shards: 2},
		&rehomeFollower{bed: s.bed, server: s.server, db: "d3", shards: 3},
		&pglogical{bed: s.bed, at: s.apart, db: "d_pglogical", schema: smallDDL},
	)
	return s, nil
}

func tpcbSuite(ctx context.Context, b *Bench, round int, scale float64) (*drainSuite, error) {
	s, err := newSuite(ctx, b, round, tpcbDB, "bid", func(ctx context.Context, bed *drainBed) error {
		bed.number = true
		cmd, done, err := pgbenchCommand(ctx, b.Rig.Source, tpcbDB, "", false, "-i", "-q", "-s", strconv.Itoa(tpcbScale))
		if err != nil {
			return err
		}
		defer done()
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("pgbench -i: %w: %s", err, out)
		}
		// The history has no key; nobody updates it, but who publishes it must say how its rows would be found.
		return errors.Join(bed.exec(ctx, tpcbDDL), bed.exec(ctx, `ALTER TABLE pgbench_history REPLICA IDENTITY FULL`),
			bed.exec(ctx, `CREATE PUBLICATION `+publication+` FOR TABLE pgbench_accounts, pgbench_tellers, pgbench_branches, pgbench_history, arrived`), bed.exec(ctx, `VACUUM ANALYZE`))
	})
	if err != nil {
		return s, err
	}
	s.logs = []backlog{tpcbBacklog(scale)}
	at := b.Rig.Targets[0]
	s.add(
		&subscription{bed: s.bed, at: at, name: nativeName, db: "t_text", schema: tpcbSchema},
		&subscription{bed: s.bed, at: at, name: binaryName, db: "t_binary", schema: tpcbSchema, binary: true},
		&slotReader{bed: s.bed},
		&slotReader{bed: s.bed, decode: true},
		&rehomeFollower{bed: s.bed, server: s.server, db: "t1", shards: 1},
		&pglogical{bed: s.bed, at: s.apart, db: "t_pglogical", schema: tpcbSchema, insertOnly: []string{"pgbench_history"}},
	)
	return s, nil
}
