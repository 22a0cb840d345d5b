"""Where a request comes from, when it came through proxies."""

from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

from app.errors import Fatal


class Proxies:
    """Those that are trusted to say whose request they pass on. Nobody else's word counts."""

    def __init__(self, networks: tuple[str, ...]) -> None:
        try:
            self._networks: list[IPv4Network | IPv6Network] = [ip_network(one, strict=False) for one in networks]
        except ValueError as error:
            raise Fatal(
                f"DATASTORAGE_TRUSTED_PROXIES: expected addresses or networks such as 10.0.0.0/8: {error}"
            ) from None

    def __bool__(self) -> bool:
        return bool(self._networks)

    def origin(self, peer: str, forwarded_for: str) -> str:
        """The last address of X-Forwarded-For that no trusted proxy has, read from its end: what stands before it is hearsay."""
        address = peer
        for hop in reversed(forwarded_for.split(",")):
            if not self._trusts(address):
                break
            try:
                address = str(ip_address(hop.strip()))
            except ValueError:
                break
        return address

    def _trusts(self, address: str) -> bool:
        try:
            parsed = ip_address(address)
        except ValueError:
            return False
        parsed = getattr(parsed, "ipv4_mapped", None) or parsed
        return any(parsed in network for network in self._networks)
