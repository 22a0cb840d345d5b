"""The cluster's DNS, which asks the API server at each question: names.py ADDRESS URL AUTHORITY. Knows Services and their pods only."""

import re
import socket
import ssl
import struct
import sys
from typing import Any

import httpx

_NAME = re.compile(r"(?:([a-z0-9-]+)\.)?([a-z0-9-]+)\.([a-z0-9-]+)\.svc\.cluster\.local")
_A, _IN, _TTL_SECONDS = 1, 1, 5
_ANSWER, _NO_SUCH_NAME = 0x8580, 3
_POINTER_TO_QUESTION = b"\xc0\x0c"


def addresses(cluster: httpx.Client, name: str) -> list[str] | None:
    """The IPv4 addresses of a Service, or of one pod of a headless one. None: there is no such name."""
    matched = _NAME.fullmatch(name)
    if matched is None:
        return None
    pod, service, namespace = matched.groups()
    asked = cluster.get(f"/api/v1/namespaces/{namespace}/services/{service}")
    if asked.status_code == httpx.codes.NOT_FOUND:
        return None
    own = asked.raise_for_status().json()["spec"].get("clusterIP", "None")
    if pod is None and own != "None":
        return [own]
    return [
        address
        for endpoint in endpoints(cluster, namespace, service)
        if endpoint["conditions"].get("ready") and pod in {None, endpoint.get("hostname")}
        for address in endpoint["addresses"]
    ] or None


def endpoints(cluster: httpx.Client, namespace: str, service: str) -> list[dict[str, Any]]:
    path = f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices"
    slices = cluster.get(path, params={"labelSelector": f"kubernetes.io/service-name={service}"})
    return [one for each in slices.raise_for_status().json()["items"] for one in each.get("endpoints") or []]


def answer(cluster: httpx.Client, query: bytes) -> bytes:
    """The response to a message with one question (RFC 1035)."""
    labels, at = [], 12
    while length := query[at]:
        labels.append(query[at + 1 : at + 1 + length].decode().lower())
        at += 1 + length
    question = query[12 : at + 5]
    (kind,) = struct.unpack(">H", query[at + 1 : at + 3])
    found = addresses(cluster, ".".join(labels))
    shown = (found or []) if kind == _A else []  # a name that has no address of another kind is there all the same
    head = struct.pack(
        ">6H", *struct.unpack(">H", query[:2]), _ANSWER | (0 if found else _NO_SUCH_NAME), 1, len(shown), 0, 0
    )
    records = (
        _POINTER_TO_QUESTION + struct.pack(">HHIH", _A, _IN, _TTL_SECONDS, 4) + socket.inet_aton(ip) for ip in shown
    )
    return head + question + b"".join(records)


def main() -> None:
    address, url, authority = sys.argv[1:]
    trusted = ssl.create_default_context(cafile=authority)
    listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    listener.bind((address, 53))
    with httpx.Client(base_url=url, verify=trusted, headers={"Authorization": "Bearer the-root"}, timeout=3) as cluster:
        while True:
            query, peer = listener.recvfrom(2048)
            try:
                listener.sendto(answer(cluster, query), peer)
            except (httpx.HTTPError, LookupError, struct.error) as error:  # the client asks again
                print(repr(error), flush=True)


if __name__ == "__main__":
    main()
