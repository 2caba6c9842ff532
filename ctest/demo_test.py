#!/usr/bin/env python3
"""Plays the business process for examples/tunnel_basic_demo.c; run by peer/peer.py.

    demo_test.py DEMO
"""
import ctypes
import os
import random
import re
import select
import signal
import subprocess
import sys
import time

PATIENCE = 60.0
STOPS_WITHIN = 0.5  # the listen and the tunnel thread have 200 ms each
ID = "4a2f0000-0000-0000-b41c-4c601630e51a"
IPC_CREAT, IPC_EXCL, IPC_RMID, IPC_STAT, IPC_NOWAIT = 0o1000, 0o2000, 0, 2, 0o4000
libc = ctypes.CDLL(None, use_errno=True)


def message(operation, do="idle", token=None):
    def field(text):
        return text.encode().ljust(128, b"\0")

    port = os.environ["PEER_PORT"]
    return (
        operation.to_bytes(4, sys.byteorder) + field(ID) + field("localhost") + field(port)
        + field(f"/tunnel/t/dest?do={do}") + field(token or os.environ["PEER_TOKEN"])
    )


class Queue:
    def __init__(self, key, create=False):
        flags = IPC_CREAT | IPC_EXCL | 0o600 if create else 0
        self.id = libc.msgget(key, flags)

    def exists(self):
        return self.id >= 0

    def send(self, body):
        buffer = (1).to_bytes(ctypes.sizeof(ctypes.c_long), sys.byteorder) + body
        if libc.msgsnd(self.id, buffer, len(body), 0) != 0:
            raise OSError(ctypes.get_errno(), "msgsnd")

    def remove(self):
        libc.msgctl(self.id, IPC_RMID, None)


class Demo:
    def __init__(self, program, *arguments):
        self.process = subprocess.Popen([program, *arguments], stdout=subprocess.PIPE)
        self.output = b""
        self.position = 0

    def expect(self, pattern):
        """Returns when a line behind the last one found matches."""
        deadline = time.monotonic() + PATIENCE
        while True:
            found = re.compile(pattern.encode() + rb"[^\n]*\n").search(self.output, self.position)
            if found:
                self.position = found.end()
                return
            ready, _, _ = select.select([self.process.stdout], [], [], deadline - time.monotonic())
            data = os.read(self.process.stdout.fileno(), 65536) if ready else b""
            if not data:
                sys.exit(f"no line {pattern!r} in:\n{self.output[self.position:].decode()}")
            self.output += data

    def stop(self, signal_number):
        began = time.monotonic()
        self.process.send_signal(signal_number)
        rest, _ = self.process.communicate(timeout=PATIENCE)
        self.output += rest
        assert self.process.returncode == 0, self.process.returncode
        assert time.monotonic() - began < STOPS_WITHIN


def common_arguments(key):
    arguments = ["--port", os.environ["PEER_ECHO_PORT"], "-s", "_ECHO", "-k", hex(key)]
    if os.environ["PEER_TLS"] == "1":
        arguments += ["--ca", os.environ["PEER_CA"]]
    return arguments


def check_the_listings(program, key):
    demo = Demo(program, *common_arguments(key))
    demo.expect("demo_tunnel_listen_task Listen ")
    queue = Queue(key)
    assert queue.exists()
    queue.send(message(1))
    demo.expect("msg recv data len 644, ")
    connect = ["start to create cloud channel", "connect remote service host localhost, port ",
               "success to establish tcp, fd=", "local port: "]
    if os.environ["PEER_TLS"] == "1":
        connect += [r"establish tls connection with server\(host='localhost', port=\[",
                    "success to establish tls connection"]
    connect += ["open_cloud_proxy_channel success", f"websocket {ID} opened",
                f"ra_event_cb AIOT_TUNNEL_EVT_CONNECT {ID}"]
    for line in connect:
        demo.expect(line)
    queue.send(message(2))
    for line in ["msg recv data len 644, ", f"ra_event_cb AIOT_TUNNEL_EVT_DISCONNECT {ID}",
                 "end the cloud channel.", "close cloud channel!", f"websocket {ID} closed",
                 *connect]:
        demo.expect(line)
    queue.send(b"too short")
    demo.expect("message dropped: 9 bytes, not 644")
    queue.send(message(1) + b"too long")
    demo.expect("message dropped: 645 bytes, not 644")
    queue.send(message(7))
    demo.expect("message dropped: unknown operation 7")
    queue.send(b"\1\0\0\0" + b"x" * 640)
    demo.expect("operation 1 failed: -0x0102")
    queue.send(message(2, "echo"))
    demo.expect(f"ra_event_cb AIOT_TUNNEL_EVT_EXPIRED {ID}")
    queue.send(message(1))
    demo.expect(f"ra_event_cb AIOT_TUNNEL_EVT_CONNECT {ID}")
    queue.send(message(0))
    demo.expect(f"ra_event_cb AIOT_TUNNEL_EVT_DISCONNECT {ID}")
    demo.stop(signal.SIGTERM)
    assert not Queue(key).exists(), "the demo's queue is left behind"
    assert os.environ["PEER_TOKEN"].encode() not in demo.output, "the token was printed"


def check_a_queue_that_exists_is_used_and_left(program, key):
    queue = Queue(key, create=True)
    assert queue.exists()
    try:
        # What it finds there is done; the three positional arguments are those of the options.
        queue.send(message(0))
        ca = os.environ["PEER_CA"]
        demo = Demo(program, os.environ["PEER_ECHO_PORT"], ca, str(key))
        demo.expect("demo_tunnel_listen_task Listen ")
        demo.expect(f"close tunnel_id {ID} not found!")
        demo.stop(signal.SIGINT)
        assert Queue(key).exists(), "the demo removed a queue that it had not made"
    finally:
        queue.remove()


def check_stops_at_once(program, key):
    for _ in range(3):
        demo = Demo(program, *common_arguments(key))
        demo.expect("demo_tunnel_listen_task Listen ")
        demo.stop(signal.SIGTERM)


def check_arguments(program):
    def status(*arguments):
        return subprocess.run([program, *arguments], capture_output=True).returncode

    assert status("--help") == 0
    for wrong in (["-p", "0"], ["-p", "65536"], ["-p", "ssh"], ["-k", "0"], ["-k", "0xg"],
                  ["-s", "x" * 128], ["--nonsense"], ["22", "ca", "1234", "more"]):
        assert status(*wrong) == 2, wrong
    assert status("--ca", "/nonexistent") == 1


def main():
    program = sys.argv[1]
    key = random.randint(0x10000000, 0x7FFFFFFF)
    check_arguments(program)
    check_the_listings(program, key)
    check_a_queue_that_exists_is_used_and_left(program, key)
    check_stops_at_once(program, key)


if __name__ == "__main__":
    main()
