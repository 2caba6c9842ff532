#!/usr/bin/env python3
"""A cloud for tests, written from RFC 6455 and the tunnel protocol. It shares no code with the
library.

    peer.py [--tls] [--port N]                 serves until standard input ends; prints "port N"
    peer.py [--tls] [--timeout S] -- COMMAND   runs COMMAND and exits with its status, or with 1 if
                                               a device broke the protocol

COMMAND has these variables in its environment:
    PEER_PORT       the peer, on 127.0.0.1 and "localhost"
    PEER_TOKEN      the token that the peer accepts; any other gets 401
    PEER_TLS        1 with --tls, otherwise 0
    PEER_CA, PEER_CLIENT_CERT, PEER_CLIENT_KEY    PEM files
    PEER_CERT       the peer's own certificate
    PEER_INTERMEDIATE   the certificate that issued it, as an intermediate of an unknown root
    PEER_ECHO_PORT  a local service that sends back what it receives
    PEER_RESET_PORT a local service that resets each connection after its first bytes

If AIOT_TEST_WRAPPER is set, for example to "valgrind -q", COMMAND runs under that program.

The query of a device's path, /tunnel/ID/dest?do=..., selects a scenario:
    idle                              stay open until the device sends a close frame
    any                               like idle, but the device may leave during the handshake
    echo[&sessions=N&bytes=N]         compare the bytes of N simultaneous _ECHO sessions; close 4001
    late                              ask for _LATE until the device offers it; close 4001
    unknown                           ask for a service that is not offered: code 2; close 4001
    reset[&times=N]                   open _RESET sessions until each is released; close 4001
    status&code=N                     refuse the handshake with an HTTP status
    close&code=N                      close at once
    drop[&times=N]                    drop the first N connections after the handshake; then idle
    vanish[&times=N]                  reset the first N during a session's data; then idle
    lossy[&times=N]                   the first N connections may be lost; then echo
    hang                              never answer the handshake
    client                            (TLS) require the device's certificate; close 4001
"""
import argparse
import base64
import collections
import hashlib
import json
import os
import random
import select
import shlex
import signal
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse

TIMEOUT = 60.0  # seconds; only a hanging test takes this long, also under valgrind
TOKEN = "hush-device-token"  # the prefix of every token in a test, for scripts/scan-logs
SUBPROTOCOL = "aliyun.iot.securetunnel-v1.1"
GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, section 1.3
CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
RESPONSE, CREATE, RELEASE, DATA = 1, 2, 3, 4
EXPIRED = 4001


class Violation(Exception):
    """The device broke the protocol."""


class Gone(Exception):
    """The device closed the connection. `code` is None if it sent no close frame."""

    def __init__(self, code):
        super().__init__(f"the device left, close code {code}")
        self.code = code


def require(condition, what):
    if not condition:
        raise Violation(what)


def unmasked(payload, key):
    repeated = (key * (len(payload) // 4 + 1))[: len(payload)]
    number = int.from_bytes(payload, "big") ^ int.from_bytes(repeated, "big")
    return number.to_bytes(len(payload), "big")


class Connection:
    """The connection of one device. One thread owns it and does all its I/O in `pump`."""

    def __init__(self, sock):
        self.sock = sock
        self.received = bytearray()
        self.outgoing = bytearray()
        self.inbox = collections.deque()  # tunnel frames: (header, payload)
        self.ended = False
        self.close_code = None
        self.last_frame_id = 0  # of the frames that are not responses
        self.next_frame_id = 1000  # of our own frames
        self.messages = 0
        self.masks = set()

    # Bytes ------------------------------------------------------------------------------

    def pump(self, timeout=TIMEOUT):
        """Sends what the socket takes. Returns when data arrived or the connection ended."""
        deadline = time.monotonic() + timeout
        while True:
            wants_write = self._flush()
            if self._fill():
                return
            left = deadline - time.monotonic()
            require(left > 0, f"nothing from the device for {timeout} s")
            select.select([self.sock], [self.sock] if wants_write else [], [], left)

    def _flush(self):
        try:
            while self.outgoing:
                del self.outgoing[: self.sock.send(self.outgoing[:65536])]
        except (ssl.SSLWantReadError, BlockingIOError):
            return not isinstance(self.sock, ssl.SSLSocket)
        except ssl.SSLWantWriteError:
            return True
        except OSError:
            self.ended = True
        return False

    def _fill(self):
        got = False
        while not self.ended:
            try:
                data = self.sock.recv(65536)
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError, BlockingIOError):
                break
            except OSError:
                data = b""
            if not data:
                self.ended = True
            self.received += data
            got = True
        return got or self.ended

    # HTTP -------------------------------------------------------------------------------

    def read_request(self):
        while b"\r\n\r\n" not in self.received:
            require(len(self.received) < 16384, "the request has no end")
            if self.ended:
                raise Gone(None)
            self.pump()
        head, _, rest = bytes(self.received).partition(b"\r\n\r\n")
        self.received = bytearray(rest)
        lines = head.decode("ascii").split("\r\n")
        method, target, version = lines[0].split(" ")
        require((method, version) == ("GET", "HTTP/1.1"), f"request line {lines[0]!r}")
        headers = {}
        for line in lines[1:]:
            name, colon, value = line.partition(":")
            require(colon and name.lower() not in headers, f"header line of {name!r}")
            headers[name.lower()] = value.strip()
        return target, headers

    def upgrade(self, port, used_keys):
        """Checks the request. Returns its target, or None if the request was refused."""
        target, headers = self.read_request()
        require(headers.get("host", "").endswith(f":{port}"), f"Host: {headers.get('host')}")
        require(headers.get("upgrade", "").lower() == "websocket", "no Upgrade: websocket")
        tokens = [token.strip().lower() for token in headers.get("connection", "").split(",")]
        require("upgrade" in tokens, "no Connection: Upgrade")
        require(headers.get("sec-websocket-version") == "13", "Sec-WebSocket-Version")
        require(headers.get("sec-websocket-protocol") == SUBPROTOCOL, "Sec-WebSocket-Protocol")
        key = headers.get("sec-websocket-key", "")
        require(len(base64.b64decode(key, validate=True)) == 16, "Sec-WebSocket-Key")
        require(key not in used_keys, "Sec-WebSocket-Key was used before")
        used_keys.add(key)
        require(headers.get("user-agent", "").startswith("aiot-tunnel/"), "no User-Agent")
        query = urllib.parse.urlsplit(target).query
        wanted = urllib.parse.parse_qs(query).get("header")
        if wanted:
            name, _, value = wanted[0].partition(":")
            require(headers.get(name) == value, f"no header {wanted[0]}")
        require("tunnel-access-token" in headers, "no tunnel-access-token")
        if headers["tunnel-access-token"] != TOKEN:
            self.refuse(401)
            return None
        query = dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(target).query))
        if query.get("do") == "status":
            self.refuse(int(query["code"]))
            return None
        accept = base64.b64encode(hashlib.sha1((key + GUID).encode()).digest()).decode()
        self.outgoing += (
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Accept: {accept}\r\nSec-WebSocket-Protocol: {SUBPROTOCOL}\r\n\r\n"
        ).encode()
        self._flush()
        return target

    def refuse(self, status):
        self.outgoing += f"HTTP/1.1 {status} Refused\r\nContent-Length: 0\r\n\r\n".encode()
        while not self.ended:
            self.pump()

    # WebSocket ---------------------------------------------------------------------------

    def send_message(self, opcode, payload):
        length = len(payload)
        if length < 126:
            self.outgoing += struct.pack("!BB", 0x80 | opcode, length)
        elif length < 65536:
            self.outgoing += struct.pack("!BBH", 0x80 | opcode, 126, length)
        else:
            self.outgoing += struct.pack("!BBQ", 0x80 | opcode, 127, length)
        self.outgoing += payload

    def _parse(self):
        """Processes one received WebSocket frame. False if none is complete."""
        data = self.received
        if len(data) < 2:
            return False
        first, second = data[0], data[1]
        require(first & 0x70 == 0, "a reserved bit is set")
        require(first & 0x80, "a fragmented message; tunnel frames are small")
        require(second & 0x80, "a frame that is not masked")
        length, start = second & 0x7F, 2
        if length == 126:
            if len(data) < 4:
                return False
            (length,) = struct.unpack_from("!H", data, 2)
            start = 4
        elif length == 127:
            raise Violation("a message above 64 KiB; payloads end at 4096 bytes")
        if len(data) < start + 4 + length:
            return False
        key = bytes(data[start : start + 4])
        payload = unmasked(bytes(data[start + 4 : start + 4 + length]), key)
        del data[: start + 4 + length]
        self.messages += 1
        self.masks.add(key)
        self._message(first & 0x0F, payload)
        return True

    def _message(self, opcode, payload):
        if opcode == BINARY:
            self._tunnel_frame(payload)
        elif opcode == PING:
            self.send_message(PONG, payload)
        elif opcode == CLOSE:
            self.close_code = struct.unpack("!H", payload[:2])[0] if payload else 1005
        else:
            require(opcode == PONG, f"opcode {opcode}")

    def close(self, code):
        """Sends a close frame and waits until the device has closed the connection."""
        self.send_message(CLOSE, struct.pack("!H", code) + b"bye")
        while not self.ended:
            self.pump()
            while self._parse():
                pass
        require(self.close_code is not None, f"close {code} was not answered")

    def reset(self):
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    # Tunnel frames -----------------------------------------------------------------------

    def _tunnel_frame(self, message):
        require(len(message) >= 2, "a tunnel frame without a header length")
        (length,) = struct.unpack_from("!H", message)
        require(1 <= length <= min(2048, len(message) - 2), f"header length {length}")
        header = json.loads(message[2 : 2 + length].decode("utf-8"))
        payload = message[2 + length :]
        require(len(payload) <= 4096, f"a payload of {len(payload)} bytes")
        kind, number = header["frame_type"], header["frame_id"]
        require(type(kind) is int and type(number) is int, f"types in {header}")
        require(isinstance(header["session_id"], str), f"types in {header}")
        require(kind in (RESPONSE, RELEASE, DATA), f"frame_type {kind} from a device")
        if kind != RESPONSE:
            require(number == self.last_frame_id + 1, f"frame_id {number} after {self.last_frame_id}")
            self.last_frame_id = number
        self.inbox.append((header, payload))

    def send_frame(self, kind, session, payload=b"", **more):
        self.next_frame_id += 1
        header = dict(frame_type=kind, session_id=session, frame_id=self.next_frame_id, **more)
        text = json.dumps(header).encode()
        self.send_message(BINARY, struct.pack("!H", len(text)) + text + payload)
        return self.next_frame_id

    def next_frame(self):
        while not self.inbox:
            if self._parse():
                continue
            if self.close_code is not None:
                # 1005 stands for a close without a code, and must not be sent.
                code = b"" if self.close_code == 1005 else struct.pack("!H", self.close_code)
                self.send_message(CLOSE, code)
                self._flush()
                raise Gone(self.close_code)
            if self.ended:
                raise Gone(None)
            self.pump()
        return self.inbox.popleft()

    def expect_response(self, number, session, code, service=None):
        while True:
            header, payload = self.next_frame()
            if header["frame_type"] == RESPONSE:
                break
        require(header["frame_id"] == number, f"{header} does not answer {number}")
        require(header["session_id"] == session, f"{header} does not name {session}")
        if service is not None:
            require(header.get("service_type") == service, f"{header} does not name {service}")
        require(json.loads(payload)["code"] == code, f"{payload!r}, not code {code}")

    def create_session(self, session, service, code=0):
        number = self.send_frame(CREATE, session, service_type=service)
        self.expect_response(number, session, code, service)


class Session:
    """The remaining data of one echo session, in both directions."""

    def __init__(self, name, size):
        self.name = name
        self.data = random.randbytes(size)
        self.sent = 0
        self.echoed = bytearray()

    def next_chunk(self):
        chunk = self.data[self.sent : self.sent + random.randint(1, 4096)]
        self.sent += len(chunk)
        return chunk

    def done(self):
        return len(self.echoed) >= len(self.data)


class Peer:
    def __init__(self, port, tls):
        self.listener = socket.create_server(("127.0.0.1", port), backlog=64)
        self.port = self.listener.getsockname()[1]
        self.tls = tls
        self.lock = threading.Lock()
        self.faults = []
        self.used_keys = set()
        self.visits = collections.Counter()  # by path
        self.threads = []
        self.stopping = False

    def serve(self):
        while True:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            if self.stopping:
                sock.close()
                return
            thread = threading.Thread(target=self.attend, args=(sock,), daemon=True)
            self.threads.append(thread)
            thread.start()

    def stop(self):
        """Waits for the connections to end. Those of an exited command end by themselves."""
        self.stopping = True
        try:
            # Closing the listener alone does not wake accept.
            socket.create_connection(("127.0.0.1", self.port), 1).close()
        except OSError:
            pass
        self.listener.close()
        for thread in self.threads:
            thread.join(5)

    def attend(self, sock):
        target = None
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self.tls:
                sock.settimeout(TIMEOUT)
                sock = self.tls.wrap_socket(sock, server_side=True)
            sock.setblocking(False)
            connection = Connection(sock)
            target = self.upgrade(connection)
            if target is not None:
                self.run_scenario(connection, target)
                fixed_mask = connection.messages > 3 and len(connection.masks) == 1
                require(not fixed_mask, "every message has the same mask")
        except (ssl.SSLError, ConnectionError):
            pass  # the device does not trust us, or its test ended it
        except Gone as gone:
            if gone.code is None and target is not None:
                self.fault(f"{target}: the device left without a close frame")
        except Violation as violation:
            self.fault(f"{target}: {violation}")
        except Exception as error:  # json, struct or a lookup rejected a message
            self.fault(f"{target}: {type(error).__name__}: {error}")
        finally:
            sock.close()

    def fault(self, text):
        if not self.stopping:
            with self.lock:
                self.faults.append(text)
            print(f"peer: {text}", file=sys.stderr, flush=True)

    def upgrade(self, connection):
        # `hang` must be known before the answer, so the raw request is searched for it.
        while b"\r\n" not in connection.received:
            if connection.ended:
                return None
            connection.pump()
        if b"do=hang" in bytes(connection.received).split(b"\r\n")[0]:
            while not connection.ended:
                connection.pump()
            return None
        return connection.upgrade(self.port, self.used_keys)

    def run_scenario(self, connection, target):
        url = urllib.parse.urlsplit(target)
        query = dict(urllib.parse.parse_qsl(url.query), target=target)
        with self.lock:
            self.visits[target] += 1
            visit = self.visits[target]
        scenario = query.get("do", "idle")
        first_ones = visit <= int(query.get("times", 1))
        if scenario in ("drop", "vanish") and not first_ones:
            scenario = "idle"
        getattr(self, "do_" + scenario)(connection, query)

    # Scenarios ---------------------------------------------------------------------------

    def do_idle(self, connection, _query):
        try:
            while True:
                connection.next_frame()
        except Gone as gone:
            require(gone.code in (1000, 1001, 1005), f"left with close code {gone.code}")

    def do_any(self, connection, _query):
        while not connection.ended:
            connection.pump()

    def do_echo(self, connection, query):
        count, size = int(query.get("sessions", 1)), int(query.get("bytes", 100000))
        sessions = {name: Session(name, size) for name in (f"s{n + 1}" for n in range(count))}
        for name in sessions:
            connection.create_session(name, "_ECHO")
        while not all(session.done() for session in sessions.values()):
            for session in sessions.values():
                if len(connection.outgoing) < 65536 and session.sent < len(session.data):
                    connection.send_frame(DATA, session.name, session.next_chunk())
            connection._flush()
            while connection._parse() or connection.inbox:
                while connection.inbox:
                    header, payload = connection.inbox.popleft()
                    require(header["frame_type"] == DATA, f"{header} during the echo")
                    sessions[header["session_id"]].echoed += payload
            sending = any(session.sent < len(session.data) for session in sessions.values())
            if not all(session.done() for session in sessions.values()):
                require(not connection.ended, "lost during the echo")
                if connection.outgoing or not sending:
                    connection.pump()
        for session in sessions.values():
            same = hashlib.sha256(session.echoed).digest() == hashlib.sha256(session.data).digest()
            require(same, f"session {session.name}: other bytes came back")
            number = connection.send_frame(RELEASE, session.name, b'{"code":0,"msg":"done"}')
            connection.expect_response(number, session.name, 0)
        connection.close(EXPIRED)

    def do_late(self, connection, _query):
        deadline = time.monotonic() + TIMEOUT
        for n in range(1, 1000000):
            number = connection.send_frame(CREATE, f"s{n}", service_type="_LATE")
            while True:
                header, payload = connection.next_frame()
                if header["frame_type"] == RESPONSE and header["frame_id"] == number:
                    break
            if json.loads(payload)["code"] == 0:
                break
            require(time.monotonic() < deadline, "the service added later is not offered")
            time.sleep(0.02)
        connection.close(EXPIRED)

    def do_unknown(self, connection, _query):
        connection.create_session("s1", "_NOBODY", code=2)
        connection.close(EXPIRED)

    def do_reset(self, connection, query):
        for n in range(int(query.get("times", 1))):
            name = f"s{n + 1}"
            connection.create_session(name, "_RESET")
            released = False
            while not released:
                connection.send_frame(DATA, name, bytes(4096))
                connection._flush()
                connection._fill()
                while connection._parse() or connection.inbox:
                    while connection.inbox:
                        header, payload = connection.inbox.popleft()
                        require(header["frame_type"] == RELEASE, f"{header}, not a release")
                        require(json.loads(payload)["code"] == 1, f"{payload!r}, not code 1")
                        released = True
                require(not connection.ended, "lost during a session")
                time.sleep(0.001)  # separate writes, so that one of them meets the reset
        connection.close(EXPIRED)

    def do_close(self, connection, query):
        connection.close(int(query["code"]))

    def do_drop(self, connection, _query):
        while connection.outgoing:
            connection._flush()

    def do_vanish(self, connection, _query):
        connection.create_session("s1", "_ECHO")
        for _ in range(64):
            connection.send_frame(DATA, "s1", bytes(4096))
        deadline = time.monotonic() + TIMEOUT
        while connection.outgoing and not connection.ended and time.monotonic() < deadline:
            connection._flush()
        connection.reset()

    def do_lossy(self, connection, query):
        # `run_scenario` has counted this visit.
        first_ones = self.visits[query["target"]] <= int(query.get("times", 1))
        try:
            self.do_echo(connection, query)
        except (Gone, Violation):
            if not first_ones:
                raise

    def do_client(self, connection, _query):
        require(connection.sock.getpeercert(), "the device showed no certificate")
        connection.close(EXPIRED)


class LocalService:
    """Accepts connections and calls `serve` for each in a thread of its own."""

    def __init__(self, serve):
        self.serve = serve
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            sock, _ = self.listener.accept()
            threading.Thread(target=self.attend, args=(sock,), daemon=True).start()

    def attend(self, sock):
        try:
            self.serve(sock)
        except OSError:
            pass
        finally:
            sock.close()


def echo(sock):
    while data := sock.recv(65536):
        sock.sendall(data)


def reset(sock):
    sock.recv(1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def make_certificates(folder):
    """Creates a throwaway CA, a certificate for the peer and one for the device."""

    def openssl(*arguments):
        command = ["openssl", *arguments]
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)

    new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    openssl("req", "-x509", *new_key, "-days", "2", "-subj", "/CN=test CA",
            "-keyout", "ca.key", "-out", "ca.pem")
    # The CA once more, as it looks when an unknown root has issued it.
    openssl("req", "-x509", *new_key, "-days", "2", "-subj", "/CN=unknown root",
            "-keyout", "root.key", "-out", "root.pem")
    openssl("req", "-new", "-key", "ca.key", "-subj", "/CN=test CA", "-out", "ca.csr")
    with open(os.path.join(folder, "ext"), "w", encoding="ascii") as file:
        file.write("basicConstraints=critical,CA:TRUE\n")
    openssl("x509", "-req", "-in", "ca.csr", "-CA", "root.pem", "-CAkey", "root.key",
            "-CAcreateserial", "-days", "2", "-extfile", "ext", "-out", "intermediate.pem")
    for name, extension in [
        ("server", "subjectAltName=DNS:localhost,IP:127.0.0.1"),
        ("client", "extendedKeyUsage=clientAuth"),
    ]:
        with open(os.path.join(folder, "ext"), "w", encoding="ascii") as file:
            file.write(extension + "\n")
        openssl("req", *new_key, "-subj", f"/CN=test {name}",
                "-keyout", f"{name}.key", "-out", f"{name}.csr")
        openssl("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key",
                "-CAcreateserial", "-days", "2", "-extfile", "ext", "-out", f"{name}.pem")


def note_secrets(folder):
    """If logs are kept, writes what no log may contain to where scripts/scan-logs finds it."""
    directory = os.environ.get("AIOT_TUNNEL_TEST_LOGS")
    if not directory:
        return
    os.makedirs(os.path.join(directory, "secrets"), exist_ok=True)
    name = os.path.join(directory, "secrets", f"peer-{os.getpid()}")
    with open(name, "w", encoding="ascii") as file:
        file.write(TOKEN + "\n")
        for key in ("ca.key", "server.key", "client.key"):
            with open(os.path.join(folder, key), encoding="ascii") as pem:
                file.write(pem.read())


def tls_context(folder):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(os.path.join(folder, "server.pem"), os.path.join(folder, "server.key"))
    context.load_verify_locations(os.path.join(folder, "ca.pem"))
    context.verify_mode = ssl.CERT_OPTIONAL
    return context


def run(command, peer, folder, timeout):
    environment = dict(
        os.environ,
        PEER_PORT=str(peer.port),
        PEER_TOKEN=TOKEN,
        PEER_TLS="1" if peer.tls else "0",
        PEER_CA=os.path.join(folder, "ca.pem"),
        PEER_CERT=os.path.join(folder, "server.pem"),
        PEER_INTERMEDIATE=os.path.join(folder, "intermediate.pem"),
        PEER_CLIENT_CERT=os.path.join(folder, "client.pem"),
        PEER_CLIENT_KEY=os.path.join(folder, "client.key"),
        # OpenSSL loads the system's root certificates even if they are not used. Under valgrind
        # that takes 10 s for each context. No test trusts them.
        SSL_CERT_FILE=os.devnull,
        SSL_CERT_DIR=os.devnull,
        PEER_ECHO_PORT=str(LocalService(echo).port),
        PEER_RESET_PORT=str(LocalService(reset).port),
    )
    wrapper = shlex.split(os.environ.get("AIOT_TEST_WRAPPER", ""))
    child = subprocess.Popen(wrapper + command, env=environment)
    try:
        status = child.wait(timeout)
    except subprocess.TimeoutExpired:
        print(f"peer: {command[0]} still runs after {timeout} s", file=sys.stderr)
        status = 1
    finally:
        child.kill()
        child.wait()
    if status < 0:
        print(f"peer: {command[0]} died of {signal.Signals(-status).name}", file=sys.stderr)
    return status


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--tls", action="store_true")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--timeout", type=float, default=300)
    parser.add_argument("command", nargs="*")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))

    with tempfile.TemporaryDirectory(prefix="aiot-peer-") as folder:
        make_certificates(folder)
        note_secrets(folder)
        peer = Peer(options.port, tls_context(folder) if options.tls else None)
        threading.Thread(target=peer.serve, daemon=True).start()
        if options.command:
            status = run(options.command, peer, folder, options.timeout)
        else:
            print(f"port {peer.port}", flush=True)
            if options.tls:
                print(f"ca {folder}/ca.pem", flush=True)
            sys.stdin.read()
            status = 0
        peer.stop()
        return 1 if status == 0 and peer.faults else status


if __name__ == "__main__":
    result = main()
    sys.exit(result if result >= 0 else 1)
