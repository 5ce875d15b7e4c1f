# muster. The two commands to know: make demo, make test.
GO      ?= go
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
COMPOSE ?= $(shell command -v docker-compose >/dev/null 2>&1 && echo docker-compose || echo docker compose)
# The race detector needs a C compiler, without which Go turns cgo off.
RACE    ?= $(if $(filter 1,$(shell $(GO) env CGO_ENABLED)),-race)
export COMPOSE

.PHONY: build test peers fuzz lint demo up down bench jepsen clean

# The static binary.
build:
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o bin/muster ./cmd/muster

# All tests, those of bench's own module too, after the checks that need no run. Tests that need root or a Docker
# engine say so when they are left out; MUSTER_TEST_ROOT=1 and
# MUSTER_TEST_DOCKER=1 ask for them. Those of jepsen measure time, so they run
# last and alone, with slack for a busy machine; make jepsen gives none.
test: lint build
	$(if $(RACE),,@echo "LEFT OUT: the race detector, which needs a C compiler")
	$(if $(MUSTER_TEST_ROOT),,@echo "LEFT OUT: tests that need root; ask for them with MUSTER_TEST_ROOT=1")
	$(if $(MUSTER_TEST_DOCKER),,@echo "LEFT OUT: tests that need a Docker engine; ask for them with MUSTER_TEST_DOCKER=1")
	$(GO) test $(RACE) -timeout 20m $$($(GO) list ./... | grep -v /jepsen)
	cd bench && $(GO) vet ./... && $(GO) test $(RACE) ./...
	$(if $(MUSTER_TEST_SPIRE)$(MUSTER_SPIRE_SERVER),,@echo "LEFT OUT: the test beside SPIRE, which takes ten minutes of processor time to build; ask for it with MUSTER_TEST_SPIRE=1")
	$(MAKE) fuzz
	@$(MAKE) --no-print-directory peers
	$(GO) test -timeout 20m ./jepsen/...

# The built program beside real peers, each with a module of its own.
peers: build
	@for mod in peers/*/go.mod; do [ -e "$$mod" ] || continue; echo "$$mod"; (cd $$(dirname $$mod) && $(GO) vet ./... && $(GO) test -timeout 15m ./...) || exit 1; done

# Every decoder of foreign bytes, for a short time each; FUZZTIME=2m for a long one, FUZZ=./quota for one room. What is found
# is written into testdata/fuzz beside the test: mend it, and keep the file as a test.
FUZZTIME ?= 3s
FUZZ     ?= ./...
fuzz:
	@mkdir -p bin
	@$(GO) test -list '^Fuzz' $(FUZZ) | awk '/^Fuzz/ { f[n++] = $$1 } /^ok/ { for (i = 0; i < n; i++) print $$2, f[i]; n = 0 }' | \
	while read -r package target; do \
		$(GO) test -run '^$$' -fuzz "^$$target$$" -fuzztime $(FUZZTIME) -parallel 2 -timeout 30m "$$package" >bin/fuzz.log 2>&1 || { cat bin/fuzz.log; exit 1; }; \
		echo "$$target $$package: $$(grep -o 'execs: [0-9]*' bin/fuzz.log | tail -n 1)"; \
	done

# Format, vet, staticcheck; the arrows between the rooms are a test, tools/house.
lint:
	@unformatted=$$(git ls-files '*.go' | grep -v '\.pb\.go$$' | xargs gofmt -l); \
	if [ -n "$$unformatted" ]; then echo "gofmt would change:"; echo "$$unformatted"; exit 1; fi
	$(GO) vet ./...
	$(GO) tool -modfile=tools/tools.mod staticcheck ./...

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

# Real processes in network namespaces, partitions, and the checkers.
jepsen: build
	MUSTER_TEST_ROOT=1 MUSTER_STRICT=1 MUSTER_ACTIVATIONS=$${MUSTER_ACTIVATIONS:-500} $(GO) test -count=1 -timeout 30m -v ./jepsen/...

clean:
	rm -rf bin
