"""A real RabbitMQ with its MQTT plugin, in its own folder and on its own ports."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.support.ports import free_ports
from tests.support.server import wait_until

# Debian's command requires root and uses the machine's only instance.
PROGRAM = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
QUESTIONS = ("user", "vhost", "resource", "topic")


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.2)
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def rabbitmq(folder: Path, hooks: str, vhosts: Sequence[str]) -> Iterator[int]:
    """Run RabbitMQ with its auth requests going to `hooks`; yield its MQTT port."""
    names, distribution, amqp, mqtt = free_ports(4)
    home = folder / "home"
    home.mkdir(parents=True)
    (folder / "plugins").write_text("[rabbitmq_mqtt,rabbitmq_auth_backend_http].\n")
    (folder / "definitions.json").write_text(json.dumps({"vhosts": [{"name": v} for v in vhosts]}))
    asked = "\n".join(f"auth_http.{q}_path = {hooks}/{q}" for q in QUESTIONS)
    (folder / "rabbitmq.conf").write_text(
        f"""listeners.tcp.1 = 127.0.0.1:{amqp}
mqtt.listeners.tcp.1 = 127.0.0.1:{mqtt}
mqtt.allow_anonymous = false
auth_backends.1 = http
auth_http.http_method = post
{asked}
load_definitions = {folder}/definitions.json
disk_free_limit.absolute = 1MB
"""
    )
    clean = {k: v for k, v in os.environ.items() if not k.startswith("RABBITMQ_")}
    environment = {
        **clean,
        "HOME": str(home),
        "ERL_EPMD_PORT": str(names),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODENAME": f"wardkey{mqtt}@localhost",
        "RABBITMQ_DIST_PORT": str(distribution),
        "RABBITMQ_CONF_ENV_FILE": str(folder / "none"),
        "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
        "RABBITMQ_MNESIA_BASE": str(folder / "data"),
        "RABBITMQ_LOG_BASE": str(folder / "logs"),
        "RABBITMQ_PID_FILE": str(folder / "pid"),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": f"-setcookie wardkey{mqtt} +sbwt none",
    }
    log = folder / "output"
    with log.open("wb") as output:
        # If the server started it, it would outlive the server.
        register = subprocess.Popen(["epmd"], env=environment, stdout=output, stderr=output)
        server = subprocess.Popen(
            [PROGRAM], env=environment, stdout=output, stderr=output, start_new_session=True
        )
    try:

        def ready() -> bool:
            assert server.poll() is None, log.read_text()
            return "completed with" in log.read_text() and is_open(mqtt)

        wait_until(ready, 90)
        yield mqtt
    finally:
        # Its shell ends with it, but would leave it running if killed first.
        if (folder / "pid").exists() and server.poll() is None:
            os.kill(int((folder / "pid").read_text()), signal.SIGKILL)
        elif server.poll() is None:
            os.killpg(server.pid, signal.SIGKILL)
        server.wait(10)
        register.kill()
        register.wait(10)
