#!/usr/bin/env python3
"""Tests examples/tunnel_basic_demo.c as its business process. Run by peer/peer.py.

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

TIMEOUT = 60.0

# Two listings from the Link SDK's documentation: a connect and an update. The demo must print
# exactly these lines in this order. <> marks the parts that differ from run to run. Two things
# differ from the documentation: it says "mbedtls", and some of its lines lack a line feed.
CONNECT = """\
[<time>][LK-1C80] start to create cloud channel
[<time>][LK-1C80] connect remote service host <host>, port <port>
[<time>][LK-1000] success to establish tcp, fd=<fd>
[<time>][LK-1000] local port: <port>
[<time>][LK-1000] establish tls connection with server(host='<host>', port=[<port>])
[<time>][LK-1000] success to establish tls connection
[<time>][LK-0F10] open_cloud_proxy_channel success
[<time>][LK-1C80] websocket <id> opened
ra_event_cb AIOT_TUNNEL_EVT_CONNECT <id> 
"""
ADD = """\
msg recv data len 644, 
""" + CONNECT
UPDATE = """\
msg recv data len 644, 
ra_event_cb AIOT_TUNNEL_EVT_DISCONNECT <id> 
[<time>][LK-1C80] end the cloud channel.
[<time>][LK-1C80] close cloud channel!
[<time>][LK-1C80] websocket <id> closed
[<time>][LK-1000] adapter_network_deinit
""" + CONNECT
# The listen thread and the tunnel thread have 200 ms each; the rest allows for a busy machine.
STOPS_WITHIN = 5.0
TLS = os.environ["PEER_TLS"] == "1"
ID = "4a2f0000-0000-0000-b41c-4c601630e51a"
IPC_CREAT, IPC_EXCL, IPC_RMID, IPC_SET, IPC_STAT, IPC_NOWAIT = 0o1000, 0o2000, 0, 1, 2, 0o4000
libc = ctypes.CDLL(None, use_errno=True)


def message(operation, do="idle", token=None):
    def field(text):
        return text.encode().ljust(128, b"\0")

    port = os.environ["PEER_PORT"]
    return (
        operation.to_bytes(4, sys.byteorder) + field(ID) + field("localhost") + field(port)
        + field(f"/tunnel/t/dest?do={do}") + field(token or os.environ["PEER_TOKEN"])
    )


def form(escaped):
    """Turns an escaped line of a listing into a pattern."""
    for name, pattern in (("time", r"\d{10,}\.\d{3}"), ("host", "localhost"), ("id", ID),
                          ("port", r"\d{1,5}"), ("fd", r"\d+")):
        escaped = escaped.replace(f"<{name}>", pattern)
    return escaped


class Queue:
    def __init__(self, key, create=False, mode=0o600):
        flags = IPC_CREAT | IPC_EXCL | mode if create else 0
        self.id = libc.msgget(key, flags)

    def exists(self):
        return self.id >= 0

    def mode(self):
        status = ctypes.create_string_buffer(1024)
        assert libc.msgctl(self.id, IPC_STAT, status) == 0
        # key, uid, gid, cuid, cgid: 4 bytes each; then the mode.
        return int.from_bytes(status[20:22], sys.byteorder) & 0o777

    def give_to(self, uid):
        """False if we lack the permission."""
        status = ctypes.create_string_buffer(1024)
        assert libc.msgctl(self.id, IPC_STAT, status) == 0
        status[4:8] = uid.to_bytes(4, sys.byteorder)
        return libc.msgctl(self.id, IPC_SET, status) == 0

    def send(self, body):
        buffer = (1).to_bytes(ctypes.sizeof(ctypes.c_long), sys.byteorder) + body
        if libc.msgsnd(self.id, buffer, len(body), 0) != 0:
            raise OSError(ctypes.get_errno(), "msgsnd")

    def fill(self):
        """Fills the queue with messages that are no commands."""
        buffer = (2).to_bytes(ctypes.sizeof(ctypes.c_long), sys.byteorder) + bytes(8)
        while libc.msgsnd(self.id, buffer, 8, IPC_NOWAIT) == 0:
            pass

    def remove(self):
        libc.msgctl(self.id, IPC_RMID, None)


class Demo:
    def __init__(self, program, *arguments):
        environment = {k: v for k, v in os.environ.items() if k != "PEER_TOKEN"}
        self.process = subprocess.Popen(
            [program, *arguments], stdout=subprocess.PIPE, env=environment)
        self.output = b""
        self.position = 0
        # For scripts/scan-logs.
        directory = os.environ.get("AIOT_TUNNEL_TEST_LOGS") or None
        self.log = directory and open(f"{directory}/demo-{self.process.pid}.log", "wb", 0)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        """Stops the demo if the test has failed, in order, so that it removes its queue."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(STOPS_WITHIN)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.process.stdout.close()
        if self.log:
            self.log.close()

    def keep(self, data):
        self.output += data
        if self.log:
            self.log.write(data)

    def expect(self, pattern):
        """Waits for a matching line after the last one found."""
        deadline = time.monotonic() + TIMEOUT
        while True:
            found = re.compile(pattern.encode() + rb"[^\n]*\n").search(self.output, self.position)
            if found:
                self.position = found.end()
                return
            ready, _, _ = select.select([self.process.stdout], [], [], deadline - time.monotonic())
            data = os.read(self.process.stdout.fileno(), 65536) if ready else b""
            if not data:
                sys.exit(f"no line {pattern!r} in:\n{self.output[self.position:].decode()}")
            self.keep(data)

    def count_in_memory(self, secret):
        """Counts the secret in all readable memory of the process."""
        count = 0
        pid = self.process.pid
        with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", 0) as memory:
            for line in maps:
                span, rights, *_ = line.split()
                if not rights.startswith("r") or line.rstrip().endswith(("[vvar]", "[vsyscall]")):
                    continue
                begin, end = (int(number, 16) for number in span.split("-"))
                memory.seek(begin)
                try:
                    count += memory.read(end - begin).count(secret)
                except OSError:
                    pass  # for example a mapping beyond the end of its file
        return count

    def expect_in_any_order(self, *patterns):
        began, ends = self.position, []
        for pattern in patterns:
            self.position = began
            self.expect(pattern)
            ends.append(self.position)
        self.position = max(ends)

    def expect_listing(self, listing):
        """Waits for the lines of a listing and fails on any other line."""
        last = re.escape(listing.splitlines()[-1])
        began = self.position
        self.expect(form(last))
        shown = self.output[began:self.position].decode().replace("\r\n", "\n").splitlines()
        if not TLS:
            listing = re.sub(r".* tls connection.*\n", "", listing)
        wanted = listing.splitlines()
        for line, pattern in zip(shown, wanted):
            if not re.fullmatch(form(re.escape(pattern)), line):
                sys.exit(f"{line!r} in place of {pattern!r}")
        assert len(shown) == len(wanted), shown

    def stop(self, signal_number):
        began = time.monotonic()
        self.process.send_signal(signal_number)
        rest, _ = self.process.communicate(timeout=TIMEOUT)
        self.keep(rest)
        assert self.process.returncode == 0, self.process.returncode
        assert time.monotonic() - began < STOPS_WITHIN


def common_arguments(key):
    arguments = ["--port", os.environ["PEER_ECHO_PORT"], "-s", "_ECHO", "-k", hex(key)]
    if TLS:
        arguments += ["--ca", os.environ["PEER_CA"]]
    return arguments


def check_the_listings(program, key):
    with Demo(program, *common_arguments(key)) as demo:
        # Two threads print these lines, in any order.
        demo.expect_in_any_order("demo_tunnel_listen_task Listen ", "remote proxy thread start!")
        queue = Queue(key)
        assert queue.exists()
        queue.send(message(1))
        demo.expect_listing(ADD)
        queue.send(message(2))
        demo.expect_listing(UPDATE)
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
        check_the_token_is_wiped(demo, queue)
        demo.stop(signal.SIGTERM)
        assert not Queue(key).exists(), "the demo left its queue behind"
        assert os.environ["PEER_TOKEN"].encode() not in demo.output, "the token was printed"


def check_the_token_is_wiped(demo, queue):
    token = os.environ["PEER_TOKEN"].encode()
    try:
        assert demo.count_in_memory(token) > 0, "the token of an open tunnel is not in memory"
    except PermissionError:
        token = None  # not permitted here
    queue.send(message(0))
    demo.expect(f"ra_event_cb AIOT_TUNNEL_EVT_DISCONNECT {ID}")
    deadline = time.monotonic() + TIMEOUT
    while token and (left := demo.count_in_memory(token)) > 0:
        assert time.monotonic() < deadline, f"the token of a deleted tunnel is in memory {left} times"
        time.sleep(0.05)


def check_a_queue_that_exists_is_used_and_left(program, key):
    queue = Queue(key, create=True)
    assert queue.exists()
    try:
        # A waiting message is executed. The positional arguments mean the same as the options.
        queue.send(message(0))
        ca = os.environ["PEER_CA"]
        with Demo(program, os.environ["PEER_ECHO_PORT"], ca, str(key)) as demo:
            demo.expect("demo_tunnel_listen_task Listen ")
            demo.expect(f"close tunnel_id {ID} not found!")
            demo.stop(signal.SIGINT)
            assert Queue(key).exists(), "the demo removed a queue that it had not created"
    finally:
        queue.remove()


def check_a_full_queue_does_not_delay_the_stop(program, key):
    queue = Queue(key, create=True)
    assert queue.exists()
    try:
        with Demo(program, *common_arguments(key)) as demo:
            demo.expect("demo_tunnel_listen_task Listen ")
            queue.fill()
            demo.stop(signal.SIGTERM)
    finally:
        queue.remove()


def check_a_queue_that_others_may_use_is_narrowed_or_refused(program, key):
    queue = Queue(key, create=True, mode=0o666)
    assert queue.exists()
    try:
        with Demo(program, *common_arguments(key)) as demo:
            demo.expect("warning: message queue of mode 0666, now 0600")
            demo.expect("demo_tunnel_listen_task Listen ")
            assert queue.mode() == 0o600, oct(queue.mode())
            demo.stop(signal.SIGTERM)
            if queue.give_to(54321):
                done = subprocess.run([program, *common_arguments(key)], capture_output=True,
                                      timeout=TIMEOUT)
                assert done.returncode == 1, done
                assert b"the message queue belongs to uid 54321" in done.stdout, done
    finally:
        queue.remove()


def check_survives_the_loss_of_its_queue(program, key):
    with Demo(program, *common_arguments(key)) as demo:
        demo.expect("demo_tunnel_listen_task Listen ")
        Queue(key).remove()
        demo.expect("demo_tunnel_listen_task Listen again")
        Queue(key).send(message(0))
        demo.expect(f"close tunnel_id {ID} not found!")
        # While there is none, too.
        Queue(key).remove()
        demo.stop(signal.SIGTERM)
    assert not Queue(key).exists(), "the demo left its queue behind"


def check_stops_at_once(program, key):
    for _ in range(3):
        with Demo(program, *common_arguments(key)) as demo:
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
    try:
        check_the_listings(program, key)
        check_a_queue_that_exists_is_used_and_left(program, key)
        check_a_full_queue_does_not_delay_the_stop(program, key)
        check_a_queue_that_others_may_use_is_narrowed_or_refused(program, key)
        check_survives_the_loss_of_its_queue(program, key)
        check_stops_at_once(program, key)
    finally:
        queue = Queue(key)  # left behind by a demo that was killed
        if queue.exists():
            queue.remove()


if __name__ == "__main__":
    main()
