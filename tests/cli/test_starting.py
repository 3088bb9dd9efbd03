"""A failing start changes nothing, shows no secret and reports the error in one line."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from tests.support.server import OWNER, Server, wait_until
from wardkey.config import ignored_variables, load_config

KUBERNETES = {
    "WARDKEY_SERVICE_HOST": "10.0.0.1",
    "WARDKEY_SERVICE_PORT": "8787",
    "WARDKEY_SERVICE_PORT_HTTP": "8787",
    "WARDKEY_PORT": "tcp://10.0.0.1:8787",
    "WARDKEY_PORT_8787_TCP": "tcp://10.0.0.1:8787",
    "WARDKEY_PORT_8787_TCP_PROTO": "tcp",
    "WARDKEY_PORT_8787_TCP_PORT": "8787",
    "WARDKEY_PORT_8787_TCP_ADDR": "10.0.0.1",
    "WARDKEY_MQTT_PORT_1883_TCP": "tcp://10.0.0.1:1883",
    "WARDKEY_API_SERVICE_HOST": "10.0.0.1",
}


def test_kubernetes_service_variables_are_not_read_as_settings() -> None:
    assert load_config(KUBERNETES) == load_config({})
    assert ignored_variables(KUBERNETES | {"WARDKEY_WORKERS": "2"}) == sorted(KUBERNETES)


@pytest.mark.parametrize("name", ["listen", "mqtt_listen", "websocket_listen"])
def test_a_port_in_use_is_reported_before_anything_is_created(tmp_path: Path, name: str) -> None:
    server = Server(tmp_path / "data", no_messaging=0)
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        server.settings[name] = f"127.0.0.1:{taken.getsockname()[1]}"
        done = server.cli("up")
    assert done.returncode == 2
    assert f"with --{name.replace('_', '-')}," in done.stderr
    assert "(at" not in done.stderr
    assert "sk_live_" not in done.stdout
    assert not server.data_dir.exists()


def test_a_later_start_reminds_of_an_owner_who_never_finished_setup(
    start: Callable[..., Server],
) -> None:
    server = start()
    server.stop()
    server.start()
    assert f"wardkey setup-link {OWNER}" in server.output
    with server.owner():
        server.stop()
    before = len(server.output)
    server.start()
    assert "setup-link" not in server.output[before:]


def test_json_logs_have_a_time_a_level_and_a_request_id(
    start: Callable[..., Server],
) -> None:
    server = start(log_format="json", access_log=1)
    with server.client(server.first_key) as client:
        ids = [
            client.get(path).headers["wardkey-request-id"]
            for path in ("/v2/keys?limit=1", "/v2/auth", f"/{server.first_key}")
        ]

    def records() -> list[dict[str, object]]:
        lines = [line for line in server.output.splitlines() if line.startswith("{")]
        found = [json.loads(line) for line in lines]
        return [record for record in found if record.get("request_id") in ids]

    assert wait_until(lambda: len(records()) == 3)
    kept = [(record["method"], record["path"], record["status"]) for record in records()]
    assert kept == [("GET", "/v2/keys", 200), ("GET", "/v2/auth", 200), ("GET", "/…", 404)]
    for record in records():
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", str(record["time"]))
        assert (record["level"], record["logger"]) == ("info", "wardkey.access")
        assert record["duration_ms"] != 0
    assert server.first_key not in server.output.partition("listens on")[2]


def test_text_logs_have_a_time_and_a_level(start: Callable[..., Server]) -> None:
    server = start(access_log=1, log_level="info")
    with server.client() as client:
        name = client.get("/healthz").headers["wardkey-request-id"]
    line = rf"\S+Z INFO GET /healthz 200 [\d.]+ ms 127\.0\.0\.1 \[{name}\]"
    assert wait_until(lambda: re.search(line, server.output))
