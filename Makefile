# The targets of this project; "make help" lists them. Everything that is built
# goes to bin/, and nothing outside this directory is written but Go's caches
# and the system packages that demo and test install (tools/deps.sh).

GO       ?= go
FUZZTIME ?= 60s
BENCH    ?= .

VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
# Stamping the commit fails where git is missing or refuses the directory.
VCS     := $(shell git rev-parse HEAD >/dev/null 2>&1 && echo true || echo false)

# Tests run the programs that make tools built.
export PATH           := $(CURDIR)/bin:$(PATH)
export IMGTRUST_TOOLS := $(CURDIR)/bin

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' Makefile

.PHONY: build
build: ## bin/imgtrust: static, reproducible, with version and commit
	CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=$(VCS) -ldflags '-s -w -X main.version=$(VERSION)' -o bin/imgtrust ./cmd/imgtrust

.PHONY: demo
demo: demodeps build ## the whole chain, and every way around it refused (installs runc)
	bin/imgtrust demo

.PHONY: demodeps
demodeps:
	@tools/deps.sh runc:runc newuidmap:uidmap

.PHONY: test
test: testdeps tools bin/testsum bin/policycheck ## every test, with the race detector; ends with the counts
	$(GO) -C tools test ./testsum
	bin/testsum -race -timeout 20m ./...

.PHONY: e2e
e2e: testdeps tools bin/testsum bin/policycheck ## only the tests with real BuildKit and runc
	bin/testsum -race -timeout 20m ./test/e2e/...

.PHONY: testdeps
testdeps:
	@tools/deps.sh runc:runc newuidmap:uidmap debootstrap:debootstrap skopeo:skopeo git:git

.PHONY: lint
lint: tools ## gofmt, vet, staticcheck, generated files, govulncheck
	@files=$$(gofmt -l .) && test -z "$$files" || { echo "gofmt -w these: $$files"; exit 1; }
	$(GO) vet ./...
	$(GO) -C tools vet ./testsum
	bin/staticcheck ./...
	cd tools && ../bin/staticcheck ./testsum
	$(GO) test -count=1 -run '^TestReference$$' ./cmd/imgtrust
	tools/vuln.sh

.PHONY: generate
generate: ## write docs/cli from the commands
	$(GO) test -count=1 -run '^TestReference$$' ./cmd/imgtrust -update

.PHONY: fuzz
fuzz: ## every fuzz test for FUZZTIME (60s)
	tools/fuzz.sh $(FUZZTIME)

.PHONY: bench
bench: ## the benchmarks that match BENCH; docs/scale.md says how to run them larger
	$(GO) test -run '^$$' -bench '$(BENCH)' -benchmem -timeout 60m ./bench ./trust

.PHONY: tools
tools: bin/.tools ## bin/: cosign, crane, staticcheck, govulncheck; some minutes when cold

bin/.tools: tools/go.mod tools/go.sum
	CGO_ENABLED=0 $(GO) -C tools build -trimpath -buildvcs=false -ldflags '-s -w' -o ../bin/ tool
	@touch $@

# What podman, CRI-O and skopeo decide by; Debian's skopeo has it disabled.
bin/policycheck: tools/policycheck/main.go tools/policycheck/go.mod tools/policycheck/go.sum
	CGO_ENABLED=0 $(GO) -C tools/policycheck build -tags containers_image_openpgp -trimpath -buildvcs=false -ldflags '-s -w' -o ../../bin/ .

bin/testsum: tools/testsum/main.go
	CGO_ENABLED=0 $(GO) -C tools build -trimpath -buildvcs=false -o ../bin/ ./testsum

.PHONY: clean
clean: ## remove bin/
	rm -rf bin
