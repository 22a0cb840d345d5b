"""The client's address of a request that came through proxies."""

from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

from app.errors import Fatal


class TrustedProxies:
    """The networks whose X-Forwarded-For is believed."""

    def __init__(self, networks: tuple[str, ...]) -> None:
        try:
            self._networks: list[IPv4Network | IPv6Network] = [ip_network(one, strict=False) for one in networks]
        except ValueError as error:
            raise Fatal(
                f"DATASTORAGE_TRUSTED_PROXIES: expected addresses or networks such as 10.0.0.0/8: {error}"
            ) from None

    def client_address(self, peer: str, forwarded_for: str) -> str:
        """The last address of X-Forwarded-For that is not a trusted proxy's, read from the end.

        What comes before it was written by the client itself and proves nothing.
        """
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
