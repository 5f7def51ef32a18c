"""A running server for tests, and plain sockets to speak to it."""

import json
import os
import re
import signal
import socket
import subprocess
import threading
import time

DEADLINE_S = 300  # generous: sanitized builds on busy machines
program = model = None  # from the command line

# The server's own deadlines are as generous, or a slow build cuts off what a test waits for. A test of a
# deadline gives its flag.
PATIENCE = {f"TESSERA_{name}_S": str(DEADLINE_S) for name in ("HEADER", "BODY", "IDLE", "WRITE", "DRAIN", "WATCHDOG")}


class Server:
    """`tessera serve`, on a free port if none is given, ready unless `wait` is false. Ends with stop()."""

    def __init__(self, *flags, environment=None, wait=True, port=0):
        self.lines = []
        self.changed = threading.Condition()
        self.process = subprocess.Popen([program, "serve", model, "--port", str(port), *flags], stderr=subprocess.PIPE,
                                        env={**os.environ, **PATIENCE, **(environment or {})})
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()
        self.port = int(self.wait_for(r"listening on http://127\.0\.0\.1:(\d+)")[1])
        self.url = f"http://127.0.0.1:{self.port}"
        if wait:
            self.wait_for("ready")

    def read(self):
        for line in self.process.stderr:
            with self.changed:
                self.lines.append(line)
                self.changed.notify_all()
        with self.changed:
            self.lines.append(None)
            self.changed.notify_all()

    def log(self):
        with self.changed:
            return b"".join(line for line in self.lines if line)

    def wait_for(self, pattern, after=0):
        """The match of the first log line from number `after` on in which `pattern` is found."""
        until = time.monotonic() + DEADLINE_S
        with self.changed:
            while True:
                for line in self.lines[after:]:
                    found = line and re.search(pattern, line.decode("utf-8", "replace"))
                    if found:
                        return found
                if self.lines and self.lines[-1] is None:
                    raise AssertionError(f"the server ended without {pattern!r}: {self.log().decode()}")
                if not self.changed.wait(until - time.monotonic()):
                    raise AssertionError(f"no {pattern!r} in the log: {self.log().decode()}")

    def stop(self, how=signal.SIGTERM):
        """Its exit code."""
        self.process.send_signal(how)
        return self.process.wait(DEADLINE_S)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.stop()
        self.reader.join()
        self.process.stderr.close()
        if b"ERROR: AddressSanitizer" in self.log() or b"runtime error" in self.log() or b"ThreadSanitizer" in self.log():
            raise AssertionError(self.log().decode("utf-8", "replace"))

    def connect(self, receive_bytes=None):
        sock = socket.socket()
        if receive_bytes:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        sock.settimeout(DEADLINE_S)
        sock.connect(("127.0.0.1", self.port))
        return sock

    def get(self, path, **headers):
        return self.send("GET", path, None, **headers)

    def post(self, path, body, **headers):
        """`body`: bytes as they are, or a value for JSON."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.send("POST", path, data, **{"Content-Type": "application/json", **headers})

    def send(self, method, path, data, **headers):
        with self.connect() as sock:
            sock.sendall(head(method, path, data, **headers))
            try:
                sock.sendall(data or b"")
            except OSError:
                pass  # refused from its headers alone: the reply says why
            return read_reply(sock.makefile("rb"), method)

    def metric(self, name, **labels):
        """The sum of a metric's samples that have these labels."""
        total = 0.0
        for line in self.get("/metrics").body.decode().splitlines():
            found = re.fullmatch(r"(\w+)(?:\{(.*)\})? (\S+)", line)
            if found and found[1] == name and all(f'{k}="{v}"' in (found[2] or "") for k, v in labels.items()):
                total += float(found[3])
        return total

    def wait_until_idle(self):
        until = time.monotonic() + DEADLINE_S
        while self.metric("tessera_num_requests_running") + self.metric("tessera_num_requests_waiting") > 0:
            if time.monotonic() > until:
                raise AssertionError("requests still run")
            time.sleep(0.02)


def head(method, path, data=None, **headers):
    lines = [f"{method} {path} HTTP/1.1", "Host: test"]
    if data is not None and "Transfer-Encoding" not in headers and "Content-Length" not in headers:
        lines.append(f"Content-Length: {len(data)}")
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


class Reply:
    def __init__(self, status, headers, body, whole):
        self.status, self.headers, self.body, self.whole = status, headers, body, whole

    def json(self):
        return json.loads(self.body)


def read_reply(file, method="GET"):
    """One reply from a socket's file; status 0 if the connection ends before one begins."""
    try:
        line = file.readline()
    except ConnectionError:
        line = b""
    if not line:
        return Reply(0, {}, b"", False)
    status, headers = int(line.split()[1]), {}
    while (line := file.readline().strip()):
        name, value = line.decode("latin-1").split(":", 1)
        headers[name.lower()] = value.strip()
    if method == "HEAD" or status in (100, 304):
        return Reply(status, headers, b"", True)
    if headers.get("transfer-encoding") != "chunked":
        body = file.read(int(headers["content-length"])) if "content-length" in headers else file.read()
        return Reply(status, headers, body, len(body) == int(headers.get("content-length", len(body))))
    body = b""
    try:
        while (size := int(file.readline() or b"-1", 16)) > 0:
            body += file.read(size)
            file.readline()
    except (ConnectionError, ValueError):
        return Reply(status, headers, body, False)
    if size == 0:
        file.readline()
    return Reply(status, headers, body, size == 0)


def events(body):
    """[(event name or None, data as text)] of an event stream; comments left out."""
    found = []
    for block in body.decode().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if line and not line.startswith(":"))
        if fields:
            found.append((fields.get("event"), fields["data"]))
    return found
