# muster. The two commands to know: make demo, make test.
GO      ?= go
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
COMPOSE ?= $(shell command -v docker-compose >/dev/null 2>&1 && echo docker-compose || echo docker compose)
# The race detector needs a C compiler, without which Go turns cgo off.
RACE    ?= $(if $(filter 1,$(shell $(GO) env CGO_ENABLED)),-race)
export COMPOSE

.PHONY: build test peers fuzz lint generate demo up down bench jepsen jepsen-full sim mutants clean

# The static binary.
build:
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o bin/muster ./cmd/muster

# All tests, those of bench's own module too, after the checks that need no run. Tests that need root or a Docker
# engine say so when they are left out; MUSTER_TEST_ROOT=1 and
# MUSTER_TEST_DOCKER=1 ask for them. Those of node, which wait a lot, begin
# first. Those of jepsen measure time, so they run
# last and alone, with slack for a busy machine; make jepsen gives none. A package that hangs shows where before .ci/run
# gives up after 39 minutes, which would show nothing: no package but node takes a tenth of its time-out on a slow machine.
test: lint build
	$(if $(RACE),,@echo "LEFT OUT: the race detector, which needs a C compiler")
	$(if $(MUSTER_TEST_ROOT),,@echo "LEFT OUT: tests that need root; ask for them with MUSTER_TEST_ROOT=1")
	$(if $(MUSTER_TEST_DOCKER),,@echo "LEFT OUT: tests that need a Docker engine; ask for them with MUSTER_TEST_DOCKER=1")
	$(GO) test $(RACE) -vet=off -timeout 15m -parallel 3 ./node $$($(GO) list ./... | grep -v -e /jepsen -e /node$$)
	cd bench && $(GO) vet ./... && $(GO) test -vet=off ./...
	$(if $(MUSTER_TEST_PROMETHEUS)$(MUSTER_PROMETHEUS),,@echo "LEFT OUT: the test beside Prometheus, which takes three minutes of processor time to build; ask for it with MUSTER_TEST_PROMETHEUS=1")
	$(if $(MUSTER_TEST_SPIRE)$(MUSTER_SPIRE_SERVER),,@echo "LEFT OUT: the test beside SPIRE, which takes ten minutes of processor time to build; ask for it with MUSTER_TEST_SPIRE=1")
	$(MAKE) fuzz
	@$(MAKE) --no-print-directory peers
	$(GO) test -timeout 15m ./jepsen/...

# The built program beside real peers, each with a module of its own.
peers: build
	@for mod in peers/*/go.mod; do [ -e "$$mod" ] || continue; echo "$$mod"; (cd $$(dirname $$mod) && $(GO) vet ./... && $(GO) test -timeout 12m ./...) || exit 1; done

# Every decoder of foreign bytes, for a short time each; FUZZTIME=2m for a long one, FUZZ=./quota for one room. What is found
# is written into testdata/fuzz beside the test: mend it, and keep the file as a test. Until Go 1.27 a target may fail for nothing
# but that its time is over (go.dev/issue/75804); it is tried again then by a number of inputs, which has no time.
FUZZTIME ?= 3s
FUZZ     ?= .
fuzz:
	@mkdir -p bin
	@targets=$$(grep -roE --include='*_test.go' '^func Fuzz[A-Za-z0-9_]+' $(FUZZ) | sed -E 's|^([^:]*)/[^/:]*:func |\1 |' | sort); \
	[ -n "$$targets" ] || { echo "no fuzz target below $(FUZZ)"; exit 1; }; \
	try() { $(GO) test -vet=off -run '^$$' -fuzz "^$$target$$" -fuzztime "$$1" -parallel 2 -timeout 5m "./$$folder" >bin/fuzz.log 2>&1; }; \
	late() { grep -qx '    context deadline exceeded' bin/fuzz.log && ! grep -q 'Failing input' bin/fuzz.log; }; \
	echo "$$targets" | while read -r folder target; do \
		try $(FUZZTIME) || { late && try 3000x; } || { cat bin/fuzz.log; exit 1; }; \
		echo "$$target $$folder: $$(grep -o 'execs: [0-9]*' bin/fuzz.log | tail -n 1)"; \
	done

# The state file stopped at each of its writes, for many logs; a minute or two.
.PHONY: crashes
crashes:
	MUSTER_CRASH_SCRIPTS=$${MUSTER_CRASH_SCRIPTS:-200} $(GO) test -count=1 -timeout 30m -v -run TestCrashAtEveryWrite ./fsm

# Format, vet, staticcheck, generated code, with the flags of build, so that all is compiled once; the arrows between the rooms are a test, tools/house.
lint:
	@unformatted=$$(git ls-files '*.go' | grep -v '\.pb\.go$$' | xargs gofmt -l); \
	if [ -n "$$unformatted" ]; then echo "gofmt would change:"; echo "$$unformatted"; exit 1; fi
	CGO_ENABLED=0 GOFLAGS=-trimpath $(GO) vet ./...
	CGO_ENABLED=0 GOFLAGS=-trimpath $(GO) tool -modfile=tools/tools.mod staticcheck ./...
	cd tools/generate && $(GO) vet . && $(GO) run . -check

# The code that proto files stand for.
generate:
	cd tools/generate && $(GO) run .

# Three nodes on loopback, a policy, a service, a dead leader: explained step by step.
demo: build
	examples/demo/demo.sh

# Three containers, and back. Volumes stay; make down VOLUMES=1 removes them.
up: build
	examples/compose/up.sh

down:
	$(COMPOSE) -p muster down $(if $(VOLUMES),-v)

# muster and etcd side by side; several minutes.
bench: build
	cd bench && CGO_ENABLED=0 $(GO) build -o ../bin/etcd go.etcd.io/etcd/server/v3 && CGO_ENABLED=0 $(GO) build -o ../bin/opa github.com/open-policy-agent/opa && $(GO) run . && $(GO) run . decisions

# Real processes in network namespaces, faults, and the checkers: each test, and the short matrix.
jepsen: build
	cd peers/disk && CGO_ENABLED=0 $(GO) build -o ../../bin/jepsen-disk .
	MUSTER_JEPSEN_DISK=$(CURDIR)/bin/jepsen-disk MUSTER_BIN=$(CURDIR)/bin/muster MUSTER_TEST_ROOT=1 MUSTER_STRICT=1 MUSTER_ACTIVATIONS=$${MUSTER_ACTIVATIONS:-500} $(GO) test -count=1 -timeout 30m -v ./jepsen -args -matrix short

# The commands of docs/operations.md and docs/sre.md on clusters that are really broken, in one way after the other; some minutes.
.PHONY: runbooks
runbooks: build
	MUSTER_RUNBOOKS=1 MUSTER_BIN=$(CURDIR)/bin/muster MUSTER_TEST_ROOT=1 $(GO) test -count=1 -timeout 40m -v -run TestRunbooks ./jepsen

# The whole matrix, for hours; CELLS='register/*,set/ring' for some of it. What is done in OUT is not run again.
OUT   ?= $(CURDIR)/bin/jepsen-full
CELLS ?=
jepsen-full: build
	$(GO) test -c -o bin/jepsen.test ./jepsen
	cd peers/disk && CGO_ENABLED=0 $(GO) build -o ../../bin/jepsen-disk .
	cd jepsen && MUSTER_JEPSEN_DISK=$(CURDIR)/bin/jepsen-disk MUSTER_BIN=$(CURDIR)/bin/muster MUSTER_TEST_ROOT=1 ../bin/jepsen.test -test.run TestMatrix -test.v -test.timeout 24h -matrix full -out $(OUT) -cells '$(CELLS)'

# Deliberate bugs, one after the other, and the test that notices each; MUTANTS=old-policy,forget-sync for some of them.
MUTANTS ?=
mutants:
	$(GO) run ./sim/mutants -only '$(MUTANTS)'

# Clusters in virtual time, under schedules of faults; SIM=60 for one minute of them.
SIM ?= 540
sim:
	$(GO) test -count=1 -timeout 30m -v -run TestSchedules ./sim -args -long -seconds $(SIM) -side 0

# Ten thousand clients that come back over TLS in one moment to a node that has just restarted; a minute. Needs 20 000 open files
# (ulimit -n), of which a node keeps nine sixteenths for this port; STORM=3000 for fewer.
STORM ?= 10000
.PHONY: storm
storm:
	MUSTER_STORM=$(STORM) $(GO) test -count=1 -timeout 15m -v -run 'TestEverybodyComesBackAtOnce$$' ./node

# A rolling upgrade to a version of the next feature level, under writes and look-ups, and the way back, which is refused.
.PHONY: upgrade
upgrade: build
	CGO_ENABLED=0 $(GO) build -trimpath -tags muster_next -ldflags '-s -w -X main.version=next' -o bin/muster-next ./cmd/muster
	MUSTER_TEST_ROOT=1 MUSTER_BIN=$(CURDIR)/bin/muster MUSTER_BIN_NEXT=$(CURDIR)/bin/muster-next $(GO) test -count=1 -v -run 'TestUpgrade$$' ./jepsen

clean:
	rm -rf bin
