# Two commands matter: `make demo` and `make test`. Each does all of its own set-up.
CARGO ?= cargo
CMAKE_DIR := target/ctest
# Every feature that switches code of ours; `vendored` only builds OpenSSL from source.
FEATURES := cli
# `make install` and `make uninstall`: see scripts/install. Make never splits or joins these paths; the scripts do.
export PREFIX LIBDIR DESTDIR INSTALL_FLAGS OBJCOPY CARGO
# The shared library by itself, as it is installed: built together with the Rust library it would keep
# what only Rust callers can reach, a fifth of its size. In a directory of its own, for the two builds would
# take each other's files for stale.
define shared_library
	$(CARGO) rustc --lib --crate-type cdylib --profile $(1) --target-dir target/shared
	@mkdir -p target/$(1)
	ln -f target/shared/$(1)/libaiot_tunnel.so target/$(1)/libaiot_tunnel.so
endef

.PHONY: help setup build demo test lint headers clean memcheck racecheck install uninstall \
  test-install test-spaces faults fuzz soak bench microbench isolation scale compare c-demo

help:
	@echo "make demo     a real ssh login through a tunnel, everything on this machine"
	@echo "make test     every test, Rust and C"
	@echo "make build    the library (target/release) and the aiot-tunnel program"
	@echo "make install  headers, libraries, .pc file and CMake package: PREFIX, LIBDIR, DESTDIR"
	@echo "make uninstall          and away again"
	@echo "make test-install       installs below target/ and builds programs against that"
	@echo "make test-spaces        make test, demo, install and uninstall in a path with spaces (long)"
	@echo "make memcheck make racecheck   the C programs under valgrind, after make test"
	@echo "make faults   2000 seeds of the fault suite; FAULT_SEEDS=n, or FAULT_SEED=n for that one"
	@echo "make fuzz     each fuzz target for SECONDS (1200); scripts/fuzz --help"
	@echo "make soak     tunnels under load and faults for DURATION (10m), then a table"
	@echo "make bench    throughput, latency, memory of the device side, as a table (docs/performance.md)"
	@echo "make microbench  the codec and single turns of the relay, in memory; MICROBENCH=name for some"
	@echo "make isolation   what one tunnel in trouble costs the others, as a table"
	@echo "make scale    one process with 10, 100 and 1,000 tunnels, idle and loaded, as a table"
	@echo "make compare  beside ssh -R and rathole, end to end, as a table"
	@echo "make lint     formatting and clippy, warnings are errors"
	@echo "make headers  generate include/*.h anew"
	@echo "make clean    remove what was built"

setup:
	@scripts/setup

# The static library is not weakened in place: cargo has a link to it, and would build it again.
build: setup
	$(CARGO) build --release --features $(FEATURES)
	scripts/weaken target/release/libaiot_tunnel.a target/release/weakened.a
	mv -f target/release/weakened.a target/release/libaiot_tunnel.a
	$(call shared_library,release)

install:
	@scripts/setup cargo-c
	scripts/install

uninstall:
	scripts/uninstall

test-install: setup
	@ctest/install/run

test-spaces: setup
	@scripts/setup cargo-c
	scripts/test-spaces --full

c-demo: build
	@mkdir -p target/demo
	$(CC) -std=c99 -Wall -Wextra -Wpedantic -Werror -O2 -Iinclude examples/tunnel_basic_demo.c \
	  -o target/demo/tunnel_basic_demo -Ltarget/release -laiot_tunnel -pthread \
	  -Wl,-rpath,'$$ORIGIN/../release'

demo: c-demo
	@scripts/demo

# Every log line of the test run goes to target/test-logs, and scripts/scan-logs searches it for tokens and keys.
test: export AIOT_TUNNEL_TEST_LOGS = $(CURDIR)/target/test-logs
test: setup
	scripts/test-spaces
	rm -rf target/test-logs && mkdir -p target/test-logs
	$(CARGO) test --features $(FEATURES)
	$(CARGO) build --release --features $(FEATURES)
	$(call shared_library,release)
	cmake -S ctest -B $(CMAKE_DIR) -DAIOT_TUNNEL_DIR="$(CURDIR)"
	cmake --build $(CMAKE_DIR)
	ctest --test-dir $(CMAKE_DIR) -j2 --output-on-failure
	cp $(CMAKE_DIR)/Testing/Temporary/LastTest.log target/test-logs
	scripts/scan-logs target/test-logs
	@echo "all tests passed"

lint: setup
	$(CARGO) fmt --check
	$(CARGO) clippy --all-targets --features $(FEATURES) -- -D warnings
	scripts/licences

headers:
	UPDATE_HEADERS=1 $(CARGO) test --test c_headers

clean:
	$(CARGO) clean

faults: export FAULT_SEEDS ?= 2000
faults: setup
	$(CARGO) test --features $(FEATURES) --test faults -- --nocapture

fuzz: SECONDS ?= 1200
fuzz:
	scripts/fuzz $(SECONDS)

soak: DURATION ?= 10m
soak: setup
	scripts/soak --duration $(DURATION)

bench: c-demo
	$(call shared_library,release-small)
	$(CARGO) bench --bench tunnel -- --json "$(CURDIR)/target/bench.json" $(OPTIONS)

microbench:
	$(CARGO) bench --bench codec -- $(if $(MICROBENCH),'$(MICROBENCH)')

isolation: setup
	$(CARGO) bench --features $(FEATURES) --bench isolation

# --quick in OPTIONS for a look only.
scale: setup
	$(CARGO) bench --bench scale -- --json "$(CURDIR)/target/scale.json" $(OPTIONS)

compare: build
	scripts/compare --json "$(CURDIR)/target/compare.json" $(OPTIONS)

# The C programs again, under valgrind's memcheck and helgrind. Takes minutes; `make test` first.
memcheck racecheck:
	cmake --build $(CMAKE_DIR) --target $@
