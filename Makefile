# make help lists the targets.

STATICCHECK = honnef.co/go/tools/cmd/staticcheck@v0.8.2
NFPM        = github.com/goreleaser/nfpm/v2/cmd/nfpm@v2.43.4
GOVULNCHECK = golang.org/x/vuln/cmd/govulncheck@v1.9.0
PLATFORMS   = linux/amd64 linux/arm64 linux/mipsle android/arm64 darwin/amd64 darwin/arm64 windows/amd64 freebsd/amd64

# Modules of their own: Pebble, the CA that tests and demo use, and the library that draws charts stay out
# of what raimon requires.
ACMETEST    = internal/acmetest
BENCHMODULE = internal/bench

# Flags of the bench: make bench BENCH=-quick, make bench BENCH=-h
BENCH =

# The race detector needs cgo, which go turns off where it finds no C compiler.
RACE = $(if $(filter 1,$(shell go env CGO_ENABLED)),-race,)

# What every path through package tunnel has to pass.
TUNNELS = Conformance|Echoes|Many|AfterTheOther|ByteByByte|Half|Cut|Reset|Early|LastReply

# What make packages builds, and as which version: that of the last tag.
PACKAGES      = deb rpm apk
ARCHITECTURES = amd64 arm64
VERSION       = $(patsubst v%,%,$(shell git describe --tags --match 'v[0-9]*' 2>/dev/null || echo v0.0.0))

# How long make soak lasts.
SOAK = 100s

.PHONY: help build demo test portable lint cross interop load soak bench packages vuln clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' Makefile

build: ## build raimons and raimonc into bin/
	CGO_ENABLED=0 go build -trimpath -ldflags=-s -o bin/ ./cmd/...

demo: ## a CA, a certificate from it, 256 MB through a wss tunnel and back, a renewal
	@go run -C $(ACMETEST) ./demo

# Most of our own tests wait more than they work: two packages at a time, as on two processors, would leave the
# machine idle. Those that take longest begin first, beside all the others.
#
# The tests of the nested modules build raimons and raimonc themselves: go test does not know what they are made
# of, and would answer from its cache.
test: ## run all tests, with the race detector where a C compiler is found
	@$(if $(RACE),true,echo 'make test: no C compiler found: running without the race detector')
	go test $(RACE) -p 4 ./edge ./tunnel ./...
	cd $(ACMETEST) && go test $(RACE) -count=1 ./faults ./...
	cd $(BENCHMODULE) && go test $(RACE) -count=1 ./...

portable: ## test tunnels without splice(2) and without the processor's AES and SIMD
	go test $(RACE) -tags portable -run '$(TUNNELS)' ./tunnel
	GODEBUG=cpu.all=off go test -tags portable,purego -run '$(TUNNELS)' -skip '/Everything' ./tunnel

lint: ## gofmt, vet, staticcheck
	@test -z "$$(gofmt -l .)" || { echo 'not gofmt-ed:'; gofmt -l .; exit 1; }
	go vet -tags interop,load ./...
	go run $(STATICCHECK) -tags interop,load ./...
	cd $(ACMETEST) && go vet ./... && go run $(STATICCHECK) ./...
	cd $(BENCHMODULE) && go vet ./... && go run $(STATICCHECK) ./...

cross: ## build for every platform
	@set -e; for p in $(PLATFORMS); do echo "$$p"; \
		CGO_ENABLED=0 GOOS=$${p%/*} GOARCH=$${p#*/} go build -o /dev/null ./cmd/raimons; \
		CGO_ENABLED=0 GOOS=$${p%/*} GOARCH=$${p#*/} go build -o /dev/null ./cmd/raimonc; \
		CGO_ENABLED=0 GOOS=$${p%/*} GOARCH=$${p#*/} go vet ./...; done

interop: build ## install real peers (apt, cargo, Go proxy) and test against them
	internal/interop/install.sh
	go test -tags interop -count=1 -timeout 30m ./internal/interop

bench: build ## install peers (apt, cargo, Go proxy) as far as they can be had, and measure beside them
	internal/bench/install.sh
	CGO_ENABLED=0 go build -trimpath -ldflags=-s -tags portable -o bin/portable/ ./cmd/...
	CGO_ENABLED=0 go build -C $(BENCHMODULE) -o $(CURDIR)/bin/raimon-bench .
	bin/raimon-bench $(BENCH)

load: ## thousands of tunnels, little memory, system calls counted; on Linux, as root
	go test $(RACE) -count=1 -run ManyTunnels ./tunnel -tunnels 1000
	go test $(RACE) -count=1 -tags portable -run ManyTunnels ./tunnel -tunnels 1000
	go test -tags load -count=1 -v -timeout 20m -skip Soak ./internal/load

soak: ## open, end, reset and kill at random; SOAK=1h for an hour
	go test -tags load -count=1 -v -timeout 0 -run Soak ./internal/load -soak $(SOAK)

packages: ## deb, rpm and apk for Linux into bin/packages/
	@mkdir -p bin/packages
	@set -e; for a in $(ARCHITECTURES); do \
		CGO_ENABLED=0 GOOS=linux GOARCH=$$a go build -trimpath -ldflags=-s -o bin/linux-$$a/ ./cmd/...; \
		for p in $(PACKAGES); do ARCH=$$a VERSION=$(VERSION) \
			go run $(NFPM) package -f docs/deploy/packages/nfpm.yaml -p $$p -t bin/packages/; done; done

vuln: ## govulncheck; needs its database, which is on the network
	go run $(GOVULNCHECK) ./...

clean: ## remove what was built
	rm -rf bin
