# `make help` lists the targets. test and demo set up what they need by themselves.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

export CGO_ENABLED ?= 0
TOOL := go tool -modfile=tools/go.mod

# Further arguments: make demo ARGS="--shards 3", make test PKG=./shard/...
ARGS ?=
# The longest packages first: the others run beside them.
PKG ?= ./replicator ./server/cutover ./internal/e2e ./...
# So many packages run at once, and so many tests of each (at least 4). A test alone uses a third of a core, since it waits for
# servers much of its time: eight keep two cores busy, more make them poll in each other's way. With two packages at once the
# longest has half of the machine from the beginning, and is not left to the end by itself.
TEST_PARALLEL ?= 2
TEST_AT_ONCE ?= $(shell n=$$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 4); echo $$((n > 4 ? n : 4)))
# One package's tests. It is for what hangs: the longest takes 10 minutes on two cores, and as much longer as others use them too.
TEST_TIMEOUT ?= 40m
FUZZ_TIME ?= 10s
# make torture: this many seeds, each so long; REHOME_TORTURE_SEED=N begins with that one instead of any.
SEEDS ?= 5
REHOME_TORTURE_SECONDS ?= 360
REHOME_SOAK_SECONDS ?= 1260
REHOME_CUTOVERS ?= 20
# Random histories of make histories, and the first one's number.
HISTORIES ?= 300000
SEED ?= 1
BENCH_ARGS ?=
BENCH_COUNT ?= 6
BENCH_OUT ?= bin/microbench.txt
# make microbench: the release whose result this is.
RELEASE ?=

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: setup
setup: ## Check Go, and install Postgres if it is missing and may be installed
	@scripts/ensure-go
	@scripts/ensure-postgres

.PHONY: build
build: ## Build bin/rehome (static)
	@scripts/ensure-go
	go build -trimpath -o bin/rehome ./cmd/rehome

.PHONY: test
test: setup ## Run all tests on real Postgres, fuzz seeds and each micro-benchmark once
	scripts/in-memory scripts/test -count=1 -p $(TEST_PARALLEL) -parallel $(TEST_AT_ONCE) -timeout $(TEST_TIMEOUT) $(PKG)

.PHONY: race
race: setup ## Run all tests with the race detector (needs a C compiler; slow)
	CGO_ENABLED=1 scripts/in-memory $(TOOL) gotestsum --format pkgname --format-hide-empty-pkg -- \
		-race -count=1 -p 3 -timeout 30m $(PKG)

.PHONY: lint
lint: ## Formatting, static analysis, import directions, file sizes
	@scripts/ensure-go
	$(TOOL) golangci-lint run
	scripts/check-file-sizes

.PHONY: vuln
vuln: ## Look for known vulnerabilities (says so when its database is out of reach)
	@scripts/check-vulnerabilities

.PHONY: fmt
fmt: ## Format all Go files
	$(TOOL) golangci-lint fmt

.PHONY: demo
demo: setup build ## The whole journey on this machine, in temporary clusters, under load
	bin/rehome demo $(ARGS)

.PHONY: pause
pause: setup ## Measure the pause of a cutover by 20 rehearsals, with the source on the same machine and 10 ms away
	REHOME_PAUSE_RUNS=20 go test -count=1 -v -run '^TestPause$$' ./internal/e2e
	REHOME_PAUSE_RUNS=20 REHOME_PAUSE_RTT_MS=10 go test -count=1 -v -run '^TestPause$$' ./internal/e2e
	REHOME_STARVE_SECONDS=10 go test -count=1 -v -run '^TestWritersAreNotStarved$$' ./gate

.PHONY: pgbench
pgbench: setup ## Move pgbench's database (scale 20) to 3 shards while 8 clients write at full speed
	REHOME_PGBENCH_SCALE=20 REHOME_PGBENCH_SECONDS=600 go test -count=1 -v -timeout 20m -run '^TestPgbench$$' ./internal/e2e

.PHONY: memory
memory: setup ## Copy 5 GB and apply one transaction of 1M rows; the server's memory stays below 300 MB
	REHOME_MEMORY_MB=5000 REHOME_MEMORY_ROWS=1000000 go test -count=1 -v -timeout 40m -run '^TestMemory$$' ./internal/e2e

.PHONY: matrix
matrix: setup ## Move a database from every version of Postgres to every version: MATRIX="13 15 17 18" (fetches what is missing)
	scripts/matrix

.PHONY: long
long: setup ## All tests, with those that make test leaves out for their length
	REHOME_LONG=1 go test -count=1 -p 1 -timeout 60m $(PKG)

.PHONY: protocol
protocol: setup ## Every death at every step of cutover and rollback, and the protocol's model with one attempt more
	REHOME_LONG=1 go test -count=1 -v -timeout 40m -run '^(TestModel|TestDeath.*|TestSessions.*|TestRollback.*)$$' ./server/cutover

.PHONY: torture
torture: setup ## Break everything at random under a checked workload: SEEDS=5 runs of REHOME_TORTURE_SECONDS=360
	REHOME_TORTURE_SEEDS=$(SEEDS) REHOME_TORTURE_SECONDS=$(REHOME_TORTURE_SECONDS) go test -count=1 -v -timeout 5h -run '^TestTorture$$' ./internal/e2e

.PHONY: kill-table
kill-table: setup ## Kill coordinator, source, shard and control database at every step; writes docs/kill-table.md
	REHOME_KILL_TABLE=$(CURDIR)/docs/kill-table.md go test -count=1 -v -timeout 60m -run '^TestKillTable$$' ./internal/e2e

.PHONY: cutovers
cutovers: setup ## REHOME_CUTOVERS=20 cutovers and rollbacks in a row under 64 clients: nothing lost, pauses measured
	REHOME_CUTOVERS=$(REHOME_CUTOVERS) go test -count=1 -v -timeout 60m -run '^TestCutovers$$' ./internal/e2e

.PHONY: soak
soak: setup ## Steady writes for REHOME_SOAK_SECONDS=1260: slot, memory, files and rows kept must stay flat
	REHOME_SOAK_SECONDS=$(REHOME_SOAK_SECONDS) go test -count=1 -v -timeout 30h -run '^TestSoak$$' ./internal/e2e

.PHONY: histories
histories: setup ## Apply HISTORIES random histories to modelled shards, and a hundredth of them on real Postgres
	REHOME_HISTORIES=$(HISTORIES) REHOME_REAL_HISTORIES=$$(( $(HISTORIES) / 100 )) REHOME_SEED=$(SEED) go test -count=1 -v -timeout 120m -run '^TestHistories' ./replicator

.PHONY: bench
bench: setup build ## Measure Rehome beside its peers; writes bench/RESULTS.md (an hour or more): BENCH_ARGS="-workloads A -rounds 1"; BENCH_INSTALL=no installs no peers
	@scripts/ensure-bench
	go run ./bench -rehome bin/rehome -limit 90m $(BENCH_ARGS)

.PHONY: microbench
microbench: setup ## Run the micro-benchmarks and compare with the newest release's (bench/micro): RELEASE=v1.2.0 keeps them as that one's
	@BENCH_COUNT=$(BENCH_COUNT) BENCH_OUT=$(BENCH_OUT) RELEASE=$(RELEASE) scripts/microbench

.PHONY: fuzz
fuzz: setup ## Run each fuzz test for FUZZ_TIME
	FUZZ_TIME=$(FUZZ_TIME) scripts/fuzz $(PKG)

.PHONY: ci
ci: ## What the continuous integration runs
	.ci/run

.PHONY: docker
docker: ## Build the container image
	docker build -t rehome .

.PHONY: clean
clean: ## Remove what was built
	rm -rf bin
	go clean -testcache
