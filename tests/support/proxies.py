"""Real HTTP proxies in front of a server: nginx, Caddy, HAProxy and Traefik."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

from tests.support.ports import free_ports
from tests.support.server import wait_until

# Upgrade is forwarded, as in every guide for WebSockets, and upstream connections are kept.
NGINX = """
daemon off;
user root;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    map $http_upgrade $connection_upgrade {{ default upgrade; '' ''; }}
    upstream wardkey {{ server {upstream}; keepalive 1; }}
    server {{
        listen 127.0.0.1:{port};
        client_max_body_size 10m;
        location / {{
            proxy_pass http://wardkey;
            proxy_http_version 1.1;
            proxy_set_header Host $host;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection $connection_upgrade;
        }}
        {more}
    }}
}}
"""
CADDY = """
{{
    admin off
    auto_https off
    servers {{
        protocols h1
    }}
}}
http://:{port} {{
    bind 127.0.0.1
    reverse_proxy {upstream} {{
        transport http {{
            keepalive_idle_conns_per_host 1
        }}
    }}
    {more}
}}
"""
HAPROXY = """
global
    maxconn 200
defaults
    mode http
    timeout connect 5s
    timeout client 30s
    timeout server 30s
    option http-keep-alive
    http-reuse always
frontend all
    bind 127.0.0.1:{port}
    {more}
    default_backend wardkey
backend wardkey
    server one {upstream}
"""
_SETTINGS = {"nginx": NGINX, "caddy": CADDY, "haproxy": HAPROXY}
KINDS = tuple(_SETTINGS)


@contextmanager
def proxy_in_front(kind: str, url: str, folder: Path, more: str = "") -> Iterator[str]:
    """Run a proxy of `kind` in front of the server at `url`; yield the proxy's own URL."""
    folder.mkdir(parents=True, exist_ok=True)
    (port,) = free_ports(1)
    text = _SETTINGS[kind].format(
        folder=folder, port=port, upstream=urlsplit(url).netloc, more=more
    )
    with running_proxy(kind, text, port, folder) as made:
        yield made


@contextmanager
def running_proxy(kind: str, text: str, port: int, folder: Path) -> Iterator[str]:
    """Run a proxy of `kind` with settings that make it listen on a port; yield its URL."""
    # Traefik reads options from traefik.yaml in its home folder, and routes from other files.
    settings = folder / ("routes.yaml" if kind == "traefik" else f"{kind}.conf")
    settings.write_text(text)
    command = {
        "nginx": ["nginx", "-p", str(folder), "-c", str(settings)],
        "caddy": ["caddy", "run", "--adapter", "caddyfile", "--config", str(settings)],
        "haproxy": ["haproxy", "-db", "-f", str(settings)],
        "traefik": [
            str(Path(sys.executable).with_name("traefik")),
            f"--providers.file.filename={settings}",
            f"--entryPoints.websecure.address=127.0.0.1:{port}",
            "--global.checkNewVersion=false",
            "--global.sendAnonymousUsage=false",
        ],
    }[kind]
    environment = {
        **os.environ,
        "HOME": str(folder),
        "XDG_CONFIG_HOME": str(folder),
        "PATH": f"{os.environ['PATH']}:/usr/sbin",
    }
    with (folder / f"{kind}.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:

        def answers() -> bool:
            assert process.poll() is None, (folder / f"{kind}.log").read_text()
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                return True
            return False

        wait_until(answers, 30)
        yield f"http://127.0.0.1:{port}"
    finally:
        # Not killed: nginx's workers would outlive it.
        process.terminate()
        process.wait(20)
