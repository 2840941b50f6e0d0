# containerd-shim-fc-v2. `make help` lists the targets.
# Every target works from a fresh clone on a Debian 12 machine as root, and is quick when there is nothing to do: long
# steps are cached by content outside the tree (~/.cache/fcshim, or $XDG_CACHE_HOME/fcshim).

SHELL       := /bin/bash
CACHE       := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/fcshim
# A Go that `make deps` had to fetch comes first.
export PATH := $(CACHE)/go/bin:$(PATH)

PREFIX  ?= /usr/local
DESTDIR ?=
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)

# The same source gives the same bytes.
GOBUILD := go build -trimpath -buildvcs=false
LDFLAGS := -s -w -X main.version=$(VERSION)
# The default of GODEBUG, which the go command sets in this way itself, from //go:debug lines; those do not take this setting. A heap
# in small pages: where transparent huge pages are always on, the first of them cost more than all else of a program's start.
LEAN    := -X runtime.godebugDefault=disablethp=1
AGENT   := $(CACHE)/agent

.DEFAULT_GOAL := help
.PHONY: help demo test test-containerd bench bench-check stress build product guest kernel tools deps install lint clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 17

demo: build tools ## run a container in a microVM, timed, beside the host
	@scripts/demo.sh

test: build tools ## all tests: here without KVM, then with KVM (real or nested)
	@scripts/test.sh

test-containerd: build tools ## containerd's own client tests, with our runtime or RUNTIME=io.containerd.runc.v2
	@scripts/test-containerd.sh

bench: build tools ## speed and weight beside runc's and QEMU's; a table, bin/bench.json, bin/bench.svg; BENCH="-only run" chooses
	@scripts/bench.sh $(BENCH)

bench-check: build tools ## what SPECIFICATION.md promises, measured
	@scripts/bench.sh -check

stress: build tools ## hours of cycles, crowds, execs, deaths at random moments, much output, requests at random, more memory in guests than there is; PARTS="cycles deaths" chooses
	@scripts/stress.sh $(PARTS)

build: product kernel guest ## bin/: the shim, fc-vmm, vmlinux, guest.img

# Without the gRPC half of containerd's API, which the shim does not use: a quarter of the binary and of its start.
product: deps
	@mkdir -p bin
	CGO_ENABLED=0 $(GOBUILD) -tags no_grpc -ldflags "$(LDFLAGS) $(LEAN)" -o bin/containerd-shim-fc-v2 ./cmd/containerd-shim-fc-v2
	CGO_ENABLED=0 $(GOBUILD) -ldflags "$(LDFLAGS) $(LEAN)" -o bin/fc-vmm ./cmd/fc-vmm

# libcontainer needs cgo; linked statically, as the image holds nothing else.
guest: deps
	@mkdir -p $(CACHE)
	CGO_ENABLED=1 $(GOBUILD) -tags "seccomp netgo osusergo" \
		-ldflags "$(LDFLAGS) -linkmode external -extldflags -static" -o $(AGENT) ./guest/agent
	@scripts/image.sh $(AGENT)

kernel: deps ## bin/vmlinux, from Debian's source, or from KERNEL=path
	@scripts/kernel.sh

tools: deps ## bin/tools/: containerd, ctr, runc and its shim, nerdctl, CNI plugins, containerd's client tests
	@scripts/tools.sh

deps: ## install Debian's packages and a Go that is new enough
	@scripts/deps.sh

install: build ## copy the product to DESTDIR/PREFIX
	install -D -m 755 -t $(DESTDIR)$(PREFIX)/bin bin/containerd-shim-fc-v2 bin/fc-vmm
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/share/containerd-shim-fc-v2 bin/vmlinux bin/guest.img configs/fc.toml

lint: deps ## gofmt, go vet, staticcheck, shellcheck, tidy modules
	@scripts/lint.sh

clean: ## remove bin/; the cache stays
	rm -rf bin
