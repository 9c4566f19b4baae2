"""Certificates for servers on loopback, made by the openssl command."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from pathlib import Path

import pytest

NO_OPENSSL = pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl: apt-get install openssl")


class Certificates:
    """A certificate authority, with certificates that it signed and one that nobody did."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._make("ca", "/CN=Test CA", "-addext", "basicConstraints=critical,CA:TRUE")
        self._make("other", "/CN=Other CA", "-addext", "basicConstraints=critical,CA:TRUE")
        self.leaf("good", "IP:127.0.0.1,DNS:localhost")
        self.leaf("wrong_host", "DNS:apim.example.com")
        self.leaf("expired", "IP:127.0.0.1", "-not_before", "20200101000000Z", "-not_after", "20200102000000Z")
        self._make("self_signed", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1")

    def path(self, name: str) -> str:
        return str(self._folder / name)

    def _openssl(self, *args: str) -> None:
        subprocess.run(["openssl", *args], cwd=self._folder, check=True, capture_output=True)

    def _make(self, name: str, subject: str, *more: str) -> None:
        key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", f"{name}.key")
        self._openssl("req", "-x509", *key, "-out", f"{name}.pem", "-subj", subject, "-days", "2", *more)

    def leaf(self, name: str, names: str, *validity: str) -> None:
        key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", f"{name}.key")
        self._openssl(
            "req", "-new", *key, "-out", f"{name}.csr", "-subj", "/CN=x", "-addext", f"subjectAltName={names}"
        )
        signed_by = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-copy_extensions", "copy")
        days = validity or ("-days", "2")
        self._openssl("x509", "-req", "-in", f"{name}.csr", "-out", f"{name}.pem", *signed_by, *days)

    def server(self, name: str) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.path(f"{name}.pem"), self.path(f"{name}.key"))
        return context
