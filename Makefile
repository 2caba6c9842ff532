## Usage: make TARGET [VARIABLE=value]...
##
## `make demo` and `make test` are the two to begin with. Each installs the system packages that it needs, or says which
## ones to install; SKIP_SETUP=1 goes on without them.
##
CARGO ?= cargo
# What cargo builds, tests and lints: its options for packages and features.
EVERYTHING := --workspace
# What cargo builds for use: the program aiot-tunnel.
PROGRAM := --package aiot-tunnel-cli

# Read by the scripts. Make itself neither splits nor joins these paths, because it would do so at spaces.
export CARGO PREFIX LIBDIR SYSCONFDIR DESTDIR PARTS INSTALL_FLAGS OBJCOPY
# Cargo uses all processors by itself, and two rules must not install packages at the same time.
.NOTPARALLEL:
.PHONY: help setup build release demo c-demo test lint headers clean install uninstall deb test-deb test-install test-spaces \
  memcheck racecheck faults kills fleet fuzz soak bench bench-tunnel bench-codec bench-isolation bench-scale bench-gateway bench-compare bench-slow-link \
  microbench isolation scale compare

help:
	@sed -n 's/^## \{0,1\}//p' Makefile

# scripts/setup has the list of what each target needs.
setup-%:
	@scripts/setup $*

## demo          logs in with ssh through a tunnel; all programs run on this machine
demo: setup-demo c-demo
	@scripts/demo

## test          runs every test, Rust and C, and ends with "N passed, N skipped (why)"
test: setup-test
	@scripts/web
	@scripts/test $(EVERYTHING)

## build         builds target/release/aiot-tunnel, and target/release/libaiot_tunnel.so and .a
# An ordinary `cargo build` builds the Rust library alone. One call builds the other two without it: built with it, they
# would keep what only Rust callers can reach, a fifth of their size. The flag is explained in build.rs.
# The packages of the page's terminal come from npm. Only these builds install npm for it: `demo` has no page.
build: setup-build release

release:
	@scripts/web
	$(CARGO) build --release $(PROGRAM)
	$(CARGO) rustc --release --lib --crate-type cdylib,staticlib -- -Clink-arg=-Wl,-z,nodelete
	scripts/weaken target/release/libaiot_tunnel.a

## install       installs the library for C programs, and the program with its systemd units: PREFIX, LIBDIR, SYSCONFDIR,
##                 DESTDIR; PARTS=library or PARTS=program for one of them
install: setup-install
	scripts/install

## uninstall     removes them again; takes the same variables
uninstall:
	scripts/uninstall

## deb           builds the Debian package of the program, target/debian/*.deb
deb: setup-deb
	scripts/deb

## lint          checks formatting, clippy's warnings and the dependencies' licences
lint: setup-lint
	$(CARGO) fmt --all --check
	$(CARGO) clippy --all-targets $(EVERYTHING) -- -D warnings
	scripts/licences $(EVERYTHING)

## headers       generates include/*.h from the comments in src/capi
headers: setup-headers
	UPDATE_HEADERS=1 $(CARGO) test --test c_headers

## setup         installs what demo, test, lint and memcheck need; `make setup-demo` only what demo needs
setup:
	@scripts/setup demo test lint memcheck

## clean         removes target/
clean:
	$(CARGO) clean

##
## Longer tests:
##
## test-install  installs below target/, and builds and runs programs against the installed files
test-install: setup-test-install
	@ctest/install/run

## test-deb      builds the Debian package; installs, uses and purges it in a copy of this system that vanishes; needs root
test-deb: setup-test-deb deb
	@packaging/test

## test-spaces   runs test, demo, install and uninstall in a directory whose path has spaces
test-spaces: setup-test-spaces
	@scripts/test-spaces --full

## memcheck      runs the C tests under valgrind
## racecheck     runs the C tests under valgrind's race detector
memcheck racecheck: %: setup-% build
	cmake -S ctest -B target/ctest
	cmake --build target/ctest
	cmake --build target/ctest --target $@

## faults        runs the fault suite with 2,000 seeds: FAULT_SEEDS=number, or FAULT_SEED=seed for one
faults: export FAULT_SEEDS ?= 2000
faults: setup-faults
	$(CARGO) test $(EVERYTHING) --test faults -- --nocapture

## kills         kills the programs 200 times under checked sessions: KILLS=number, or KILL_SEED=seed for one
kills: export KILLS ?= 200
kills: setup-kills
	$(CARGO) build $(PROGRAM)
	$(CARGO) test $(PROGRAM) --test kills -- --nocapture

## fleet         kills each of two gateways behind HAProxy ten times under checked sessions of 200 tunnels:
##                 FLEET_TUNNELS=number, FLEET_KILLS=number
fleet: export FLEET_TUNNELS ?= 200
fleet: export FLEET_KILLS ?= 10
fleet: setup-fleet
	$(CARGO) build $(PROGRAM)
	$(CARGO) test $(PROGRAM) --test fleet -- --nocapture

## fuzz          runs each fuzz target for SECONDS (1200)
fuzz: SECONDS ?= 1200
fuzz: setup-fuzz
	scripts/fuzz $(SECONDS)

## soak          runs tunnels under load, faults and kills for DURATION (10m), and prints a table
soak: DURATION ?= 10m
soak: setup-soak
	scripts/soak --duration $(DURATION)

## bench         runs the benchmark called NAME, with OPTIONS, and prints a table (docs/performance.md):
##     NAME=tunnel     the device side: throughput, latency, memory (the default)
##     NAME=codec      frames and single turns of the relay, in memory; MICROBENCH=text selects some
##     NAME=isolation  what one tunnel in trouble costs the others
##     NAME=scale      one process with 10, 100 and 1,000 tunnels
##     NAME=gateway    one gateway with 1,000 and 10,000 tunnels, and two behind HAProxy (docs/scale.md)
##     NAME=compare    the tunnel beside ssh -R and rathole
##     NAME=slow-link  a keystroke beside a file over slow links; needs root
# `make bench compare` means NAME=compare, too.
NAME := $(or $(filter codec isolation scale compare slow-link,$(MAKECMDGOALS)),tunnel)
bench: bench-$(NAME)

bench-tunnel: setup-bench-tunnel c-demo
	$(CARGO) rustc --profile release-small --lib --crate-type cdylib -- -Clink-arg=-Wl,-z,nodelete
	$(CARGO) bench --bench tunnel -- --json "$(CURDIR)/target/bench.json" $(OPTIONS)

bench-codec: setup-bench-codec
	$(CARGO) bench --bench codec -- $(if $(MICROBENCH),'$(MICROBENCH)') $(OPTIONS)

bench-isolation: setup-bench-isolation
	$(CARGO) bench $(EVERYTHING) --bench isolation -- $(OPTIONS)

bench-scale: setup-bench-scale
	$(CARGO) bench --bench scale -- --json "$(CURDIR)/target/scale.json" $(OPTIONS)

bench-gateway: setup-bench-gateway
	$(CARGO) build --release $(PROGRAM)
	$(CARGO) bench --bench gateway -- --json "$(CURDIR)/target/gateway.json" $(OPTIONS)

bench-compare: setup-bench-compare build
	scripts/compare --json "$(CURDIR)/target/compare.json" $(OPTIONS)

bench-slow-link: setup-bench-slow-link build
	$(CARGO) bench --bench slow-link -- --json "$(CURDIR)/target/slow-link.json" $(OPTIONS)

bench-%:
	@echo "There is no benchmark called $*; the names are tunnel, codec, isolation, scale, gateway, compare and slow-link." >&2; exit 2

# The benchmarks' former targets.
microbench: bench-codec
isolation scale compare: %: bench-%

# The C demo: `make demo` uses it as the remote-login process, and `make bench` as the device.
c-demo: setup-c-demo release
	@mkdir -p target/demo
	$(CC) -std=c99 -Wall -Wextra -Wpedantic -Werror -O2 -Iinclude examples/tunnel_basic_demo.c \
	  -o target/demo/tunnel_basic_demo -Ltarget/release -laiot_tunnel -pthread \
	  -Wl,-rpath,'$$ORIGIN/../release'

##
## Examples:
##
##   make install PREFIX=/opt/aiot
##   make install PREFIX=/usr DESTDIR=stage PARTS=library INSTALL_FLAGS="--features vendored"
##   make bench NAME=scale OPTIONS=--quick
##   make faults FAULT_SEED=17
