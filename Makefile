# The tasks of this repository; `make` lists them.
TOOLS   ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/athensctl-tools
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
FUZZTIME ?= 10s

STATICCHECK = $(TOOLS)/staticcheck-v0.8.2/staticcheck
GOVULNCHECK = $(TOOLS)/govulncheck-v1.9.0/govulncheck

help: ## list the tasks
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## build bin/athensctl
	CGO_ENABLED=0 go build -trimpath -ldflags "-X github.com/athensctl/athensctl/internal/cli.version=$(VERSION)" -o bin/athensctl .

test: tools lint ## install what is needed, lint, run all tests with -race
	@echo "== go test -race"
	ATHENSCTL_TEST_REQUIRE=1 go test -race -timeout 20m ./...

tools: $(STATICCHECK) $(GOVULNCHECK) ## install the pinned tools
	@command -v strace >/dev/null || { [ "$$(id -u)" = 0 ] || { echo "strace is missing; as root: apt-get install strace" >&2; exit 1; }; \
		apt-get update -q && apt-get install -y -q strace; }

$(STATICCHECK):
	@echo "== install staticcheck"
	GOBIN=$(@D) go install honnef.co/go/tools/cmd/staticcheck@v0.8.2

$(GOVULNCHECK):
	@echo "== install govulncheck"
	GOBIN=$(@D) go install golang.org/x/vuln/cmd/govulncheck@v1.9.0

lint: $(STATICCHECK) $(GOVULNCHECK) ## gofmt, go vet, staticcheck, go mod tidy, govulncheck
	@echo "== lint"
	@test -z "$$(gofmt -l .)" || { echo "gofmt -l:"; gofmt -l .; exit 1; }
	go vet ./...
	$(STATICCHECK) ./...
	go mod tidy -diff
	@sh test/govulncheck.sh $(GOVULNCHECK)

fuzz: ## run each fuzz target for FUZZTIME
	@grep -rl --include='*_test.go' '^func Fuzz' . | xargs -n1 dirname | sort -u | while read -r dir; do \
		sed -n 's/^func \(Fuzz[A-Za-z0-9]*\).*/\1/p' $$dir/*_test.go | while read -r f; do \
			echo "== $$dir $$f"; go test -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) $$dir || exit 1; done || exit 1; done

generate: ## make docs/configuration.md again
	go generate ./...

clean: ## remove what build made
	rm -rf bin

.PHONY: help build test tools lint fuzz generate clean
