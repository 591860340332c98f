package main

import (
	"context"
	"fmt"
)

// Further figures of a drain.
const (
	drainRows     = "rows/s"
	drainTxns     = "txn/s"
	startSeconds  = "start s"         // from the request to the walsender's start
	spoolMB       = "spooled MB"      // files of the server, at the peak
	sourceSpillMB = "source spill MB" // what the walsender wrote to the source's disk while it decoded
)

func rehomeShards(n int) string {
	if n == 1 {
		return "Rehome, 1 shard"
	}
	return fmt.Sprintf("Rehome, %d shards", n)
}

// spilled is what decoding for a contender's slot has written to the source's disk so far, in bytes (pg_stat_replication_slots,
// from version 14 on).
func (b *drainBed) spilled(ctx context.Context, f follower) (n int64, err error) {
	if b.rig.Source.Version() < 14 {
		return 0, nil
	}
	slot, err := f.slot(ctx)
	if err != nil {
		return 0, err
	}
	err = b.src.QueryRow(ctx, `SELECT coalesce((SELECT spill_bytes FROM pg_stat_replication_slots WHERE slot_name = $1), 0)`, slot).Scan(&n)
	if err != nil {
		return 0, fmt.Errorf("read what was spilled at the source: %w", err)
	}
	return n, nil
}

// Report has a table of each backlog.
func (w *drainWorkload) Report(r *Results) []Section {
	out := []Section{{
		Title: "D: backlogs, each drained from a stopped state",
		Text: "All contenders follow the source, are stopped, and drain the same WAL one after the other, each alone. The clock runs from the moment that the contender's walsender is there (the source's " +
			"pg_replication_slots.active, asked every 2 ms) until its targets show all rows of a last transaction (asked every 5 ms); native: ALTER SUBSCRIPTION … ENABLE, pglogical: " +
			"alter_subscription_enable, Rehome: `rehome resume-replication`; start s is the time from that request to the walsender. CPU in seconds, from the request to the end. After each drain " +
			"the tables that the backlog changed are counted and hashed at both sides. x native is rows/s to those of the native subscription in text in the same round, which has the server's default of the option `streaming` (off up to 17, parallel from 18 on); " +
			"the contender named streaming has it on, from 16 on parallel. Rehome's own walsender session decodes with logical_decoding_work_mem of 16 MB, which it sets itself (from 14 on); " +
			"the others with the server's default of 64 MB, as their users have it.\n\n" +
			"Two of them apply nothing. pg_recvlogical is no lower bound: it reads each message as it comes, which costs the walsender more than sending to one who is busy applying, or who reads " +
			"what has gathered. Decoding alone (pg_logical_slot_peek_binary_changes, on one session of the source, which stores what it decodes) has nobody to send to; its clock begins with the request.",
	}}
	for _, l := range w.backlogs() {
		inCase := drainCase(l)
		s := Section{Title: inCase, Head: []string{"contender", ">wall s", ">rows/s", ">txn/s", ">x native", ">start s", ">CPU tool", ">source", ">targets", ">all", ">n"}}
		for _, name := range w.order(r, inCase) {
			cpu := func(f Figure) string { return r.Spread(inCase, name, f).Middle() }
			wall := r.Spread(inCase, name, Wall)
			if wall.N == 0 {
				continue
			}
			s.Rows = append(s.Rows, []string{
				name, wall.String(), r.Spread(inCase, name, Value(drainRows)).Middle(), r.Spread(inCase, name, Value(drainTxns)).Middle(),
				r.Ratio(inCase, name, Value(drainRows), inCase, nativeName, Value(drainRows)).String(), r.Spread(inCase, name, Value(startSeconds)).Middle(),
				cpu(func(s Sample) float64 { return s.CPU.Tool + s.CPU.Control }), cpu(func(s Sample) float64 { return s.CPU.Source }),
				cpu(func(s Sample) float64 { return s.CPU.Targets }), cpu(func(s Sample) float64 { return s.CPU.Sum() }), digitsInt(wall.N),
			})
		}
		out = append(out, s)
	}
	return out
}

// order is that of the suites, not that of the first round, which is rotated.
func (w *drainWorkload) order(r *Results, inCase string) []string {
	known := []string{nativeName, binaryName, streamName, pglogicalName, readerName, decoderName, rehomeShards(1), rehomeShards(2), rehomeShards(3)}
	var names []string
	for _, k := range known {
		if len(r.Good(inCase, k)) > 0 {
			names = append(names, k)
		}
	}
	return names
}

// Aims of D are those of speed; memory's are with G.
func (w *drainWorkload) Aims(r *Results) []Aim {
	bounds := map[string]float64{"small": 2, "tpcb": 3, "inserts": 1.3, "updates": 1.3}
	var aims []Aim
	for _, l := range w.backlogs() {
		limit, note := bounds[l.key], "to one shard"
		if streamed := r.Ratio(drainCase(l), rehomeShards(1), Value(drainRows), drainCase(l), streamName, Value(drainRows)); streamed.N > 0 {
			note += "; to native with streaming " + streamed.String()
		}
		aims = append(aims, Aim{
			What: "backlog: " + l.name, Bound: fmt.Sprintf("≥ %g × native's rows/s", limit), Limit: limit, AtLeast: true,
			Measured: r.Ratio(drainCase(l), rehomeShards(1), Value(drainRows), drainCase(l), nativeName, Value(drainRows)), Note: note,
		})
	}
	return aims
}
