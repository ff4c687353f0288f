"""The server: from the clients' payloads to what each of them gets.

It holds the configuration and the shapes of the adapted modules, and nothing of a client but what
came through `wire`.
"""

from fedecider import wire
from fedecider.config import RunConfig
from fedecider.methods import Upload, make
from fedecider.methods.base import payload_spec


class Server:
    """Aggregates the payloads of a round as the method says.

    `shapes` are (d_out, d_in) of every adapted module (`Adapter.shapes`).
    """

    def __init__(self, config: RunConfig, shapes: dict[str, tuple[int, int]]):
        self.config, self.shapes, self.method = config, shapes, make(config)

    def aggregate(self, round: int, payloads: dict[str, bytes]) -> dict[str, dict[str, bytes]]:
        """Uploads by client to downloads by receiver and source.

        A client whose payload is empty has sent nothing, and gets what the others get. Raises
        `wire.PayloadError`, which names its `sender`, for a payload that must not be used.
        """
        spec = payload_spec(self.config, self.method, self.shapes, round, up=True)
        uploads = {
            client: Upload(
                wire.decode(payload, client, spec), wire.read_metrics(payload, client, spec)
            )
            for client, payload in payloads.items()
            if payload
        }
        if not uploads:
            return {}
        absent = [client for client, payload in payloads.items() if not payload]
        downloads = self.method.aggregate(uploads, round, absent)
        encoded: dict[int, bytes] = {}  # what goes to several clients is encoded once
        dtype, unit = self.config.direction.payload_dtype, self.method.payload_norm(up=False)
        for factors in (each for sources in downloads.values() for each in sources.values()):
            if id(factors) not in encoded:
                encoded[id(factors)] = wire.encode(factors, dtype=dtype, unit=unit)
        return {
            client: {source: encoded[id(factors)] for source, factors in sources.items()}
            for client, sources in downloads.items()
        }
