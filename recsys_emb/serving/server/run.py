"""The server's process: a port, signals, and an end that leaves no request without its answer."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import torch
import uvicorn

from recsys_emb.errors import UserError
from recsys_emb.serving.server.app import build_app
from recsys_emb.serving.server.limits import Limits

GRACE_SECONDS = 30
"""Within which requests that came before SIGTERM or Ctrl-C are answered."""


def run_server(
    path: Path, host: str, port: int, limits: Limits, device: str, threads: int, ready: Callable[[str], None]
) -> None:
    """Serves an artifact until SIGTERM or Ctrl-C; then no more connections are taken, and those that are there end.

    Args:
        path: the artifact's folder, or a link to it.
        host: address to listen on.
        port: 0 for any that is free.
        limits: what it takes.
        device: ``auto``, ``cpu`` or ``cuda``.
        threads: that predict a batch.
        ready: told the server's address.

    Raises:
        UserError: not an artifact, or the address cannot be listened on.
    """
    torch.set_num_threads(threads)
    app = build_app(path, limits, device)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((host, port))
        except (OSError, OverflowError) as error:
            raise UserError(f"--host {host} --port {port}: cannot be listened on ({error})") from None
        shown = f"[{host}]" if family == socket.AF_INET6 else host
        ready(f"http://{shown}:{listening.getsockname()[1]}")
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, timeout_graceful_shutdown=GRACE_SECONDS, backlog=2048
        )
        uvicorn.Server(config).run(sockets=[listening])
