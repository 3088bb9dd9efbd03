"""A TCP proxy that can stop forwarding without refusing anything, like a cut network."""

from __future__ import annotations

import selectors
import socket
import threading


class Proxy:
    """Forwards one loopback port to another until cut; connections stay open meanwhile."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self._whole = threading.Event()
        self._whole.set()
        self._stopped = threading.Event()
        self._sockets: list[socket.socket] = [self._listening]
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def cut(self) -> None:
        """Stop forwarding in both directions."""
        self._whole.clear()

    def reconnect(self) -> None:
        """Forward again, including the delayed data."""
        self._whole.set()

    def close(self) -> None:
        self._stopped.set()
        self._whole.set()
        # Only closing it would leave the thread in accept() until one more connection.
        self._listening.shutdown(socket.SHUT_RDWR)
        self._accepting.join()
        for connection in self._sockets:
            connection.close()

    def _accept(self) -> None:
        while not self._stopped.is_set():
            try:
                near, _ = self._listening.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                near.close()
                continue
            self._sockets += [near, far]
            threading.Thread(target=self._forward, args=(near, far), daemon=True).start()

    def _forward(self, near: socket.socket, far: socket.socket) -> None:
        with selectors.DefaultSelector() as selector:
            try:
                selector.register(near, selectors.EVENT_READ, far)
                selector.register(far, selectors.EVENT_READ, near)
                while not self._stopped.is_set():
                    for key, _ in selector.select(0.2):
                        self._whole.wait()
                        assert isinstance(key.fileobj, socket.socket)
                        data = key.fileobj.recv(65_536)
                        if not data:
                            near.close()
                            far.close()
                            return
                        self._whole.wait()
                        key.data.sendall(data)
            except (OSError, ValueError):
                near.close()
                far.close()
