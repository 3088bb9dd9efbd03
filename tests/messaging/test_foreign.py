"""Clients that others made log in, listen and publish: mosquitto's, MQTT.js, a page in Chromium."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlencode

import pytest

from tests.support.server import Server, running, wait_until

if TYPE_CHECKING:  # takes a second to import
    from playwright.sync_api import Page

HERE = Path(__file__).parent
NODE = HERE.parent / "node"
MQTT_JS = NODE / "node_modules" / "mqtt" / "dist" / "mqtt.min.js"
CONNECTION_REFUSED = 5  # CONNACK's "not authorized", which mosquitto's clients exit with


class Login(NamedTuple):
    username: str
    password: str


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("foreign") / "data", no_messaging=0) as server:
        with server.owner() as owner:
            for number, (kind, action, pattern) in enumerate(
                [
                    ("publishable", "publish", "public/#"),
                    ("everyone", "both", "agents/#"),
                    ("everyone", "both", "public/#"),
                ]
            ):
                rule = {"subject": {"kind": kind}, "action": action, "filter": pattern}
                told = owner.post(
                    "/v2/acl/rules", json={**rule, "effect": "allow", "priority": number}
                )
                assert told.status_code == 201, told.text
            wait_until(lambda: owner.get("/v2/sessions").status_code == 200)
        yield server


def made(server: Server, name: str) -> Login:
    with server.owner() as owner:
        told = owner.post("/v2/clients", json={"username": name}).json()
    return Login(told["client"]["mqtt_username"], told["password"])


def listens(server: Server, login: Login) -> bool:
    with server.owner() as owner:
        told = owner.get("/v2/sessions", params={"username": login.username}).json()
    return any(session["subscriptions"] for session in told["sessions"])


def mosquitto(program: str, server: Server, login: Login, *options: str) -> list[str]:
    user = ["-u", login.username, "-P", login.password]
    return [f"mosquitto_{program}", "-h", "127.0.0.1", "-p", str(server.mqtt_port), *user, *options]


def ran(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)


@pytest.mark.parametrize("qos", ["0", "1", "2"])
def test_mosquitto_sub_sees_what_mosquitto_pub_sends(broker: Server, qos: str) -> None:
    one, other = made(broker, f"sub-{qos}"), made(broker, f"pub-{qos}")
    wanted = ["-t", "agents/#", "-q", qos, "-C", "1", "-F", "%t %q %r %p"]
    with subprocess.Popen(
        mosquitto("sub", broker, one, *wanted), stdout=subprocess.PIPE, text=True
    ) as listening:
        wait_until(lambda: listens(broker, one))
        sent = ran(mosquitto("pub", broker, other, "-t", "agents/x", "-m", "hello", "-q", qos))
        assert sent.returncode == 0, sent.stderr
        told, _ = listening.communicate(timeout=20)
    assert told == f"agents/x {qos} 0 hello\n"


def test_mosquitto_sub_sees_what_was_retained(broker: Server) -> None:
    login = made(broker, "retained")
    sent = ran(mosquitto("pub", broker, login, "-t", "agents/kept", "-m", "old", "-r", "-q", "1"))
    assert sent.returncode == 0, sent.stderr
    wanted = ["-t", "agents/kept", "-C", "1", "-W", "10", "-F", "%t %r %p"]
    assert ran(mosquitto("sub", broker, login, *wanted)).stdout == "agents/kept 1 old\n"
    assert ran(mosquitto("pub", broker, login, "-t", "agents/kept", "-n", "-r")).returncode == 0


@pytest.mark.parametrize("program", ["pub", "sub"])
def test_mosquittos_exit_code_tells_of_a_wrong_password(broker: Server, program: str) -> None:
    login = made(broker, f"wrong-{program}")._replace(password="wrong")
    message = ["-m", "x"] if program == "pub" else []
    told = ran(mosquitto(program, broker, login, "-t", "agents/x", *message))
    assert told.returncode == CONNECTION_REFUSED
    assert "not authorised" in told.stderr


def test_mosquitto_sub_is_told_of_a_topic_that_is_denied(broker: Server) -> None:
    told = ran(mosquitto("sub", broker, made(broker, "denied"), "-t", "private/#", "-W", "5"))
    assert "All subscription requests were denied" in told.stderr


def test_mosquittos_mqtt_5_is_told_that_it_is_not_spoken(broker: Server) -> None:
    login = made(broker, "newer")
    told = ran(mosquitto("pub", broker, login, "-V", "5", "-t", "agents/x", "-m", "x"))
    assert "Unsupported Protocol Version" in told.stderr
    assert ran(mosquitto("pub", broker, login, "-t", "agents/x", "-m", "x")).returncode == 0


class NodeClient:
    """MQTT.js in a process of its own, which tells what happens."""

    def __init__(self, url: str, login: Login, mqtt_id: str, *settings: str) -> None:
        self.process = subprocess.Popen(
            ["node", NODE / "client.js", url, *login, mqtt_id, *settings],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )

    def ask(self, command: str, **more: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"command": command, **more}) + "\n")

    def told(self, event: str) -> dict[str, Any]:
        """Return the next event with that name; what comes before it is passed over."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            found: dict[str, Any] = json.loads(line)
            if found.pop("event") == event:
                return found
        raise AssertionError(f"MQTT.js ended without {event}")


@contextmanager
def node(url: str, login: Login, mqtt_id: str, *settings: str) -> Iterator[NodeClient]:
    """Run MQTT.js until the block ends; its settings as JSON, `{}` for its own."""
    client = NodeClient(url, login, mqtt_id, *settings)
    try:
        yield client
    finally:
        client.process.kill()
        client.process.communicate()


def urls(server: Server) -> dict[str, str]:
    return {
        "mqtt": f"mqtt://127.0.0.1:{server.mqtt_port}",
        "ws": f"ws://127.0.0.1:{server.websocket_port}/mqtt",
    }


@pytest.mark.parametrize("scheme", ["mqtt", "ws"])
def test_mqtt_js_listens_and_publishes_in_node(broker: Server, scheme: str) -> None:
    login, url = made(broker, f"node-{scheme}"), urls(broker)[scheme]
    with node(url, login, f"node-{scheme}") as client:
        assert client.told("connect") == {}
        client.ask("subscribe", topic="agents/node/#", qos=2)
        assert client.told("subscribe") == {"granted": [2]}
        for qos in (0, 1, 2):
            client.ask("publish", topic=f"agents/node/{qos}", payload="é", qos=qos, retain=False)
            assert client.told("message") == {
                "topic": f"agents/node/{qos}", "payload": "é", "qos": qos, "retain": False
            }  # fmt: skip
        client.ask("subscribe", topic="private/#", qos=1)
        assert client.told("subscribe")["granted"] == [128]
    with node(url, login._replace(password="wrong"), "wrong") as refused:
        assert refused.told("error")["code"] == CONNECTION_REFUSED


class Site(BaseHTTPRequestHandler):
    """Serves the page and MQTT.js."""

    def __init__(self, files: dict[str, tuple[str, bytes]], *args: Any) -> None:  # noqa: ANN401
        self.files = files
        super().__init__(*args)

    def do_GET(self) -> None:
        kind, body = self.files.get(self.path, ("text/plain", b""))
        self.send_response(200 if body else 404)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
        """Say nothing."""


@pytest.fixture(scope="module")
def site() -> Iterator[int]:
    """Serve the page on a port of its own, and so under an origin of its own."""
    files = {
        "/": ("text/html", (HERE / "page.html").read_bytes()),
        "/mqtt.min.js": ("text/javascript", MQTT_JS.read_bytes()),
    }
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Site, files)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


@pytest.fixture(scope="module")
def page_key(broker: Server, site: int) -> str:
    """Return a publishable key for the page's origin."""
    wanted = {
        "name": "live-page",
        "type": "publishable",
        "allowed_origins": [f"http://127.0.0.1:{site}"],
    }
    with broker.owner() as owner:
        return str(owner.post("/v2/keys", json=wanted).json()["secret"])


def address(server: Server, host: str, site: int, login: Login, key: str) -> str:
    told = {"broker": urls(server)["ws"], "api": server.url, "key": key, **login._asdict()}
    return f"http://{host}:{site}/#{urlencode(told)}"


@pytest.mark.browser
def test_a_page_sees_what_it_publishes_with_a_publishable_key(
    broker: Server, site: int, page_key: str, page: Page
) -> None:
    page.goto(address(broker, "127.0.0.1", site, made(broker, "page"), page_key))
    page.get_by_text("listening").wait_for()
    told = page.evaluate("publish('public/news', {'from': 'the page'})")
    assert (told["status"], told["success"]) == (200, True)
    page.get_by_text('public/news: {"from":"the page"}').wait_for()
    # A page can read why it was refused, too.
    denied = page.evaluate("publish('agents/x', 1)")
    assert (denied["status"], denied["code"]) == (403, "publish_denied")


@pytest.mark.browser
def test_a_page_of_another_origin_is_refused_and_can_read_why(
    broker: Server, site: int, page_key: str, page: Page
) -> None:
    page.goto(address(broker, "localhost", site, made(broker, "elsewhere"), page_key))
    page.get_by_text("listening").wait_for()
    told = page.evaluate("publish('public/news', 1)")
    assert (told["status"], told["code"]) == (403, "origin_not_allowed")


@pytest.mark.browser
def test_a_page_with_a_wrong_password_is_told(
    broker: Server, site: int, page_key: str, page: Page
) -> None:
    login = made(broker, "page-wrong")._replace(password="wrong")
    page.goto(address(broker, "127.0.0.1", site, login, page_key))
    page.get_by_text(f"refused: {CONNECTION_REFUSED}").wait_for()
