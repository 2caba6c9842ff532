# Two commands matter: `make demo` and `make test`. Each does all of its own set-up.
CARGO ?= cargo
CMAKE_DIR := target/ctest
# Every feature that switches code of ours; `vendored` only builds OpenSSL from source.
FEATURES := cli

.PHONY: help setup build demo test lint headers clean

help:
	@echo "make demo     a real ssh login through a tunnel, everything on this machine"
	@echo "make test     every test, Rust and C"
	@echo "make build    the library (target/release) and the aiot-tunnel program"
	@echo "make memcheck the C programs under valgrind, after make test"
	@echo "make lint     formatting and clippy, warnings are errors"
	@echo "make headers  generate include/*.h anew"
	@echo "make clean    remove what was built"

setup:
	@scripts/setup

build: setup
	$(CARGO) build --release --features $(FEATURES)

demo: build
	@mkdir -p target/demo
	$(CC) -std=c99 -Wall -Wextra -Wpedantic -Werror -O2 -Iinclude examples/tunnel_basic_demo.c \
	  -o target/demo/tunnel_basic_demo -Ltarget/release -laiot_tunnel -pthread \
	  -Wl,-rpath,'$$ORIGIN/../release'
	@scripts/demo

test: setup
	$(CARGO) test --features $(FEATURES)
	$(CARGO) build --release --features $(FEATURES)
	cmake -S ctest -B $(CMAKE_DIR) -DAIOT_TUNNEL_DIR="$(CURDIR)"
	cmake --build $(CMAKE_DIR)
	ctest --test-dir $(CMAKE_DIR) -j2 --output-on-failure
	@echo "all tests passed"

lint: setup
	$(CARGO) fmt --check
	$(CARGO) clippy --all-targets --features $(FEATURES) -- -D warnings

headers:
	UPDATE_HEADERS=1 $(CARGO) test --test c_headers

clean:
	$(CARGO) clean

# The C programs again, under valgrind. Takes minutes; `make test` comes first.
.PHONY: memcheck
memcheck:
	cmake --build $(CMAKE_DIR) --target memcheck
