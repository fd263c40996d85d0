"""Where the processes of one machine meet: on addresses that no other machine reaches."""

import os
import socket

import torch.distributed as dist


def loopback() -> str:
    """Return the name of the network interface that no other machine reaches."""
    names = [name for _, name in socket.if_nameindex()]
    return "lo" if "lo" in names else "lo0"  # macOS


def local_store(port: int = 0) -> dist.TCPStore:
    """Open a store that only this machine reaches. Port 0 chooses a free one."""
    # PyTorch itself would listen on all interfaces, and a store asks for no password.
    with socket.create_server(("127.0.0.1", port), backlog=1024) as server:
        return dist.TCPStore(
            "127.0.0.1",
            server.getsockname()[1],
            is_master=True,
            wait_for_workers=False,
            master_listen_fd=os.dup(server.fileno()),
        )
