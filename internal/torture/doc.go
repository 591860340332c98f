// Package torture is what `make torture` and `make soak` are made of: a plan of faults drawn from a seed, a network that
// misbehaves on demand, a workload whose every transaction is accounted for, and a comparison of both sides that shares no
// code with the product.
//
//	Plan(seed) ──▶ faults: kill, stop, restart of processes; latency, cut, silence, narrowness of connections
//	Workload   ──▶ source ──(servers, through Network)──▶ shards
//	Compare    ──▶ source and shards, directly: every row, once, where it belongs; every acknowledged transaction
//
//	Witness    ──▶ source and every shard, directly, all the time: one side at a time accepts, nothing acknowledged is lost
//	Relay      ──▶ one message of one session comes late, never, or is not answered
//
// The processes themselves are started and killed by the tests of internal/e2e.
//
// # What a seed reproduces
//
// The faults, their order, their targets, how long each lasts and when each is due; and, per client, which transactions it
// tries in which order. It does not reproduce timing: which transaction meets which fault differs from run to run, and a
// client that met an error goes on from there.
package torture
