"""The time to move a prompt's KV cache from a prefill to a decode server."""

import msgspec


class KvLink(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The link from one prefill instance.

    Attributes:
        fixed_s: handshake and first-byte cost of one transfer, seconds.
        bytes_per_token: KV bytes of one token over all layers and tensor-parallel ranks.
        bytes_per_s: bandwidth of one prefill instance.
    """

    fixed_s: float
    bytes_per_token: float
    bytes_per_s: float

    def transfer_s(self, tokens: int) -> float:
        """Return the seconds of moving the KV of `tokens` tokens over an idle link."""
        return self.fixed_s + self.wire_s(tokens)

    def wire_s(self, tokens: int) -> float:
        """Return the seconds that `tokens` tokens occupy the link, without the fixed cost."""
        return tokens * self.bytes_per_token / self.bytes_per_s
