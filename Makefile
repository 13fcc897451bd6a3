# The tasks of this repository; `make` lists them.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:

VERSION    ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
FUZZTIME   ?= 10s
BENCHFLAGS ?=

# Tools are kept outside the tree, by their version and by that of the Go that
# built them: one built by an older Go does not read newer code.
CACHE       ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/athensctl-tools
BIN          = $(CACHE)/$(GOVERSION)
GOVERSION   := $(shell go env GOVERSION 2>/dev/null || echo no-go)
STATICCHECK  = $(BIN)/staticcheck-v0.8.2/staticcheck
export GOVULNCHECK = $(BIN)/govulncheck-v1.9.0/govulncheck
ACTIONLINT   = $(BIN)/actionlint-v1.7.12/actionlint
GORELEASER   = $(BIN)/goreleaser-v2.16.0/goreleaser
export KIND        = $(BIN)/kind-v0.33.0/kind
KUBEVERSION  = v1.35.4
export HELM        = $(BIN)/helm-v4.3.1/helm
export KUBECONFORM = $(BIN)/kubeconform-v0.8.0/kubeconform
export KUBE_SCHEMAS = $(CACHE)/schemas-$(KUBEVERSION)-with-crds
export KUBE_BIN     = $(BIN)/kube-$(KUBEVERSION)
export TERRAFORM = $(BIN)/terraform-v1.11.4/terraform
export AZURERM   = $(BIN)/terraform-provider-azurerm-v5.2.0/terraform-provider-azurerm
export TFLINT    = $(BIN)/tflint-v0.64.0/tflint

help: ## list the tasks
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

build: ## build bin/athensctl
	CGO_ENABLED=0 go build -trimpath -ldflags "-X github.com/athensctl/athensctl/internal/cli.version=$(VERSION)" -o bin/athensctl .

# -count=1, since go test does not see that what a test starts (the binary it
# builds, go list) has changed, and would answer from its cache.
# The packages that take longest are named first: two go at once, and none of these is to be the last.
# What is about 50,000 versions has a tenth of them under -race, and is run again without; so
# is what measures memory, which the race detector takes too.
test: tools lint ## install what is missing, lint, and run every test with -race
	@PATH="$$PATH:/usr/sbin:/sbin" ATHENSCTL_TEST_REQUIRE=1 test/step.sh "go test -race" \
		go test -race -count=1 -timeout 20m ./internal/e2e ./vcs ./storage/cosmos ./...
	@ATHENSCTL_TEST_REQUIRE=1 test/step.sh "go test: 50,000 versions, memory" go test -count=1 -timeout 20m -run '^TestMany|^TestHostileMemory$$' ./crawler ./vcs

test-azure: azure ## run the tests of Cosmos DB and Blob Storage alone, against their stand-ins
	@ATHENSCTL_TEST_REQUIRE=1 test/step.sh "go test -race: Azure" \
		go test -race -count=1 -timeout 20m ./storage/... ./internal/cosmosfake && \
		ATHENSCTL_TEST_REQUIRE=1 go test -count=1 -timeout 20m -run Azure ./internal/e2e

test-real: ## compare 400 module versions of the world, out of git repositories, with the checksum database; needs the module proxy
	@ATHENSCTL_TEST_REAL=1 ATHENSCTL_TEST_REQUIRE=1 test/step.sh "modules of the world" \
		go test -count=1 -v -timeout 20m -run '^TestReal$$' ./vcs

test-cluster: cluster-tools ## install the chart on a real one-node Kubernetes and make trouble; needs root
	@test/step.sh "chart on Kubernetes $(KUBEVERSION)" test/cluster/run.sh

cluster-tools: azure $(HELM) $(KUBE_BIN)/kube $(KUBE_SCHEMAS) ## install what test-cluster needs: Debian packages, and a build of Kubernetes
	@test/step.sh "Debian packages of the cluster" test/packages.sh cluster

test-kind: $(HELM) $(KIND) ## install the chart on kind; needs docker and the internet
	@test/step.sh "chart on kind" test/kind.sh

test-terraform: $(TERRAFORM) $(AZURERM) $(TFLINT) $(HELM) ## check deploy/terraform without Azure: validate, terraform test, tflint
	@test/step.sh "Terraform" test/terraform/run.sh

image: ## build the image of the Dockerfile, with docker or buildah
	@test/image.sh "athensctl:$(VERSION)" "$(VERSION)"

image-report: packages $(GOVULNCHECK) ## build it for both platforms; what is in it, its size and start time; needs root
	@test/packages.sh cluster
	@test/step.sh "image" test/image/report.sh $(CURDIR)/bin/image

snapshot: $(GORELEASER) ## build in dist/ what a tag would release, but for SBOMs and signatures
	@test/step.sh "goreleaser" test/snapshot.sh $(GORELEASER)

tools: packages azure $(STATICCHECK) $(GOVULNCHECK) $(ACTIONLINT) $(HELM) $(KUBECONFORM) $(KUBE_SCHEMAS) ## install what the tests and lint need

azure:
	@test/step.sh "npm ci: stand-ins for Azure" test/azure/install.sh $(CACHE)

packages:
	@test/step.sh "Debian packages" test/packages.sh

$(STATICCHECK):
	@GOBIN=$(@D) test/step.sh "install staticcheck" go install honnef.co/go/tools/cmd/staticcheck@v0.8.2

$(GOVULNCHECK):
	@GOBIN=$(@D) test/step.sh "install govulncheck" go install golang.org/x/vuln/cmd/govulncheck@v1.9.0

$(ACTIONLINT):
	@GOBIN=$(@D) test/step.sh "install actionlint" go install github.com/rhysd/actionlint/cmd/actionlint@v1.7.12

$(GORELEASER):
	@GOBIN=$(@D) test/step.sh "install goreleaser" go install -ldflags "-s -w" github.com/goreleaser/goreleaser/v2@v2.16.0

$(KIND):
	@GOBIN=$(@D) test/step.sh "install kind" go install sigs.k8s.io/kind@v0.33.0

$(HELM):
	@GOBIN=$(@D) test/step.sh "install helm" go install helm.sh/helm/v4/cmd/helm@v4.3.1

$(KUBE_BIN)/kube:
	@test/step.sh "build Kubernetes $(KUBEVERSION)" test/cluster/kube/build.sh $@
	@ln -sf kube $(@D)/kubectl

$(TERRAFORM):
	@test/step.sh "build Terraform 1.11.4" test/terraform/build.sh $@

# The commit of release 5.2.0: the module has no tags of its major version.
$(AZURERM):
	@GOBIN=$(@D) test/step.sh "build Terraform's provider azurerm 5.2.0" \
		go install -ldflags='-s -w' github.com/hashicorp/terraform-provider-azurerm@v1.44.1-0.20260824201233-fae580791926

$(TFLINT):
	@GOBIN=$(@D) test/step.sh "install tflint" go install github.com/terraform-linters/tflint@v0.64.0

$(KUBECONFORM):
	@GOBIN=$(@D) test/step.sh "install kubeconform" go install github.com/yannh/kubeconform/cmd/kubeconform@v0.8.0

$(KUBE_SCHEMAS):
	@test/step.sh "schemas of Kubernetes $(KUBEVERSION) and of others" test/cluster/schemas.sh $(KUBEVERSION) $@

lint: packages $(STATICCHECK) $(GOVULNCHECK) $(ACTIONLINT) ## gofmt, go vet, staticcheck, go mod tidy -diff, govulncheck of sources and binary, shellcheck, actionlint, Dockerfile
	@test/step.sh "gofmt" test/gofmt.sh
	@test/step.sh "go mod tidy -diff" go mod tidy -diff
	@test/step.sh "go vet" go vet ./...
	@test/step.sh "staticcheck" $(STATICCHECK) ./...
	@test/step.sh "govulncheck" test/govulncheck.sh $(GOVULNCHECK)
	@go build -o bin/athensctl-lint .
	@test/step.sh "govulncheck of the binary" test/govulncheck.sh $(GOVULNCHECK) -mode=binary bin/athensctl-lint
	@test/step.sh "shellcheck" test/shellcheck.sh
	@test/step.sh "actionlint" $(ACTIONLINT) -color
	@test/step.sh "Dockerfile, by BuildKit" go -C test/dockerfile test -count=1 .

fuzz: ## run each fuzz target for FUZZTIME (10s)
	@test/fuzz.sh $(FUZZTIME)

show: ## the go command and real modules through it: one process, three roles, upstream gone, restart; needs the module proxy
	@test/show.sh

bench: ## measure side by side; BENCHFLAGS="--only warm", see bench/README.md
	go run ./bench $(BENCHFLAGS)

generate: ## write again what is generated (docs/configuration.md)
	go generate ./...

clean: ## remove what build made
	rm -rf bin dist

.PHONY: help build test test-azure test-real test-cluster cluster-tools test-kind test-terraform image image-report snapshot tools packages azure lint fuzz show bench generate clean
