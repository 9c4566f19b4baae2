"""A time-stamp authority on this machine: `openssl ts` behind a local HTTP server."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

SETTINGS = """
[req]
distinguished_name = name
[name]
[ca]
basicConstraints = critical, CA:true
keyUsage = critical, keyCertSign
[tsa]
basicConstraints = critical, CA:false
keyUsage = critical, digitalSignature
extendedKeyUsage = critical, timeStamping
[authority]
serial = ./serial
signer_cert = ./tsa.pem
signer_key = ./tsa.key
certs = ./ca.pem
signer_digest = sha256
default_policy = 1.2.3.4
digests = sha256
ess_cert_id_alg = sha256
"""
ELLIPTIC = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256")


class Authority:
    """A root certificate and a time-stamp authority below it."""

    def __init__(self, folder: Path, *, key: tuple[str, ...] = ELLIPTIC) -> None:
        self.folder = folder
        self.root = folder / "ca.pem"
        folder.mkdir(parents=True)
        (folder / "openssl.cnf").write_text(SETTINGS)
        (folder / "serial").write_text("01")
        made = ("-nodes", "-config", "openssl.cnf", "-subj", "/CN=Test")
        self._openssl("req", "-x509", *ELLIPTIC, *made, "-extensions", "ca", "-keyout", "ca.key", "-out", "ca.pem")
        self._openssl("req", *key, *made, "-keyout", "tsa.key", "-out", "tsa.csr")
        signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-out", "tsa.pem")
        self._openssl("x509", "-req", "-in", "tsa.csr", *signed, "-extfile", "openssl.cnf", "-extensions", "tsa")

    def answer(self, query: bytes) -> bytes:
        """The response to a time-stamp request; it may be a refusal."""
        (self.folder / "query").write_bytes(query)
        reply = ("-reply", "-config", "openssl.cnf", "-section", "authority", "-queryfile", "query", "-out", "reply")
        self._openssl("ts", *reply)
        return (self.folder / "reply").read_bytes()

    def confirms(self, token: bytes, message: bytes) -> bool:
        """Whether openssl accepts a token."""
        (self.folder / "token").write_bytes(token)
        (self.folder / "message").write_bytes(message)
        asked = ["openssl", "ts", "-verify", "-token_in", "-in", "token", "-data", "message", "-CAfile", "ca.pem"]
        return subprocess.run(asked, cwd=self.folder, capture_output=True).returncode == 0

    def _openssl(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=self.folder, check=True, capture_output=True)


@contextmanager
def served(answer: Callable[[bytes], bytes], status: int = 200) -> Iterator[str]:
    """The address of a server that answers each POST with ``answer`` of its body."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            right = self.headers["Content-Type"] == "application/timestamp-query"
            content = answer(body) if right else b"not a time-stamp query"
            self.send_response(status)
            self.send_header("Location", "/elsewhere")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Print nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/tsr"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
