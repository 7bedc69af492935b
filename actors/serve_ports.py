"""Keeps a port of every Serve replica on loopback, which Serve would open to the network.

Each replica starts a gRPC server on all interfaces, for gRPC calls between deployments, and unpickles what it receives
there. Our calls use Ray's own ports.
"""

from __future__ import annotations

from typing import Any

from ray.serve._private import constants, replica


def keep_serve_port_on_loopback() -> None:
    """Must be called in a replica's constructor, which runs before the replica opens that port."""
    if constants.RAY_SERVE_USE_GRPC_BY_DEFAULT:
        return  # set by the user: other deployments use this port
    bind = replica.add_port_to_grpc_server

    def on_loopback(server: Any, address: str) -> int:
        return bind(server, address.replace("[::]:", "127.0.0.1:"))

    replica.add_port_to_grpc_server = on_loopback
