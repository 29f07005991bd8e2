"""A process that follows a source and answers lookups over a local socket, and its client.

It stands on the public names of `monolith_kv` alone: an application could have written it.
"""

from monolith_kv.server.client import Client
from monolith_kv.server.protocol import Answer, Limits, ServerError, Status
from monolith_kv.server.server import Scorer, Server

__all__ = ["Answer", "Client", "Limits", "Scorer", "Server", "ServerError", "Status"]
