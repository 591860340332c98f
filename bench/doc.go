// Command bench measures Rehome beside its peers: the same work, on the same clusters, in the same run, and writes a report
// with the ratios (bench/RESULTS.md). `make bench` runs it; docs/benchmarks.md says how to read what it writes.
//
// # How it is built
//
//	Rig (rig.go)        source, targets and control clusters with equal settings; fresh databases; CPU of each (cpu.go)
//	Dataset (dataset.go) what is copied, loaded once into a database of its own at the source, with digests of each table
//	Run (run.go)        one contender's turn: its clock, the CPU seconds that it took, the commands that it ran
//	Workload            lets its contenders run in each round, in rotating order (turn), and says what tables it reports
//	Server (server.go)  a Rehome installation of its own, as a child process, driven by the command line
//	Results (results.go) samples by case, contender and round; ratios are made of samples of the same round only
//	report.go           the report: everything in it is computed from the samples; each workload has its tables and aims
//
// Rounds are the outer loop and workloads the inner one, so that a run which is interrupted still has whole rounds of
// everything and writes them.
//
// A contender's turn that fails, or whose data differ from the source's, has no figure; the report says why. A contender that
// is not there is named in the report with the reason.
//
// # To add a workload
//
// Implement Workload in a file of its own and list it in all (main.go). Prepare loads what is needed, once. Round calls Bench.Turn
// for each contender: it makes the Run, calls the contender, adds the sample, cleans up. D and E, whose contenders follow one
// source together, have a drainSuite instead. Report returns tables.
package main
