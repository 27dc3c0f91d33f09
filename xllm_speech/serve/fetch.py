"""Bringing a medium from a host that the server's owner allowed, and from no other (server-side request forgery)."""

from __future__ import annotations

import ipaddress
import socket
import time
from collections.abc import Collection
from typing import Any
from urllib.parse import urlsplit

import urllib3

from xllm_speech.serve.refusal import Refusal, bad_request

BLOCK = 1 << 16
PORTS = {"http": 80, "https": 443}


def fetch(url: str, allowed: Collection[str], most_bytes: int, limit_sec: float, label: str) -> bytes:
    """The bytes behind `url`.

    The host must be among `allowed` (`host`, or `host:port` for a port of its own); a name must lead to public addresses
    only, and the connection goes to the address that was looked at. Redirects are refused, proxies are not used.

    Raises:
        Refusal: not allowed, unreachable, too slow, too large, or answered with anything but 200; `label` names the medium.
    """
    scheme, host, port, path = _parse(url, label)
    entry = host if port == PORTS[scheme] else f"{host}:{port}"
    if entry not in allowed:
        raise bad_request(
            f"{label}: media are not fetched from {entry}; send the bytes as a data URI, or ask for --allow-host {entry}",
            code="host_not_allowed",
        )
    address = _resolve(host, port, label)
    end = time.monotonic() + limit_sec
    timeout = urllib3.Timeout(total=limit_sec)
    shown = f"[{host}]" if ":" in host else host
    header = shown if port == PORTS[scheme] else f"{shown}:{port}"
    pool = (
        urllib3.HTTPSConnectionPool(address, port, server_hostname=host, assert_hostname=host, timeout=timeout, retries=False)
        if scheme == "https" else urllib3.HTTPConnectionPool(address, port, timeout=timeout, retries=False)
    )
    try:
        with pool:
            response = pool.request(
                "GET", path, headers={"Host": header, "Accept-Encoding": "identity"}, redirect=False, preload_content=False
            )
            try:
                return _read(response, most_bytes, end, label)
            finally:
                response.close()
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise bad_request(f"{label}: cannot be fetched from {entry} ({type(error).__name__})", code="fetch_failed") from error


def _parse(url: str, label: str) -> tuple[str, str, int, str]:
    """(scheme, host, port, path with query)."""
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").rstrip("."), parts.port
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        (host + path).encode("ascii")
    except ValueError as error:
        raise bad_request(f"{label}: not a URL", code="invalid_url") from error
    if parts.scheme not in PORTS or not host or parts.username is not None:
        raise bad_request(f"{label}: expected a data URI or an http(s) URL without a user name", code="invalid_url")
    return parts.scheme, host, PORTS[parts.scheme] if port is None else port, path


def _resolve(host: str, port: int, label: str) -> str:
    """One address of a host, all of whose addresses may be spoken to."""
    try:
        # An owner who allows a bare address means that one, wherever it is.
        return str(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        found = [str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    except (OSError, UnicodeError) as error:
        raise bad_request(f"{label}: the name {host} leads nowhere", code="fetch_failed") from error
    for address in found:
        if not _is_public(address):
            raise bad_request(f"{label}: {host} leads to an address that is not public", code="host_not_allowed")
    return found[0]


def _is_public(address: str) -> bool:
    parsed = ipaddress.ip_address(address.partition("%")[0])
    mapped = getattr(parsed, "ipv4_mapped", None)
    parsed = mapped or parsed
    return parsed.is_global and not parsed.is_multicast


def _read(response: Any, most_bytes: int, end: float, label: str) -> bytes:
    if response.status != 200:
        what = "a redirect" if 300 <= response.status < 400 else f"status {response.status}"
        raise bad_request(f"{label}: its host answered with {what}", code="fetch_failed")
    blocks: list[bytes] = []
    size = 0
    while block := response.read1(BLOCK):
        size += len(block)
        if size > most_bytes:
            raise bad_request(f"{label}: more than {most_bytes} bytes", code="media_too_large")
        if time.monotonic() > end:
            raise Refusal(400, f"{label}: its host is too slow", code="fetch_failed")
        blocks.append(block)
    return b"".join(blocks)
