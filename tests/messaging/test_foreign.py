"""Third-party clients connect, subscribe and publish: mosquitto, MQTT.js, a page in Chromium."""

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
                response = owner.post(
                    "/v2/acl/rules", json={**rule, "effect": "allow", "priority": number}
                )
                assert response.status_code == 201, response.text
            wait_until(lambda: owner.get("/v2/sessions").status_code == 200)
        yield server


def made(server: Server, name: str) -> Login:
    with server.owner() as owner:
        created = owner.post("/v2/clients", json={"username": name}).json()
    return Login(created["client"]["mqtt_username"], created["password"])


def has_subscription(server: Server, login: Login) -> bool:
    with server.owner() as owner:
        body = owner.get("/v2/sessions", params={"username": login.username}).json()
    return any(session["subscriptions"] for session in body["sessions"])


def mosquitto(program: str, server: Server, login: Login, *options: str) -> list[str]:
    user = ["-u", login.username, "-P", login.password]
    return [f"mosquitto_{program}", "-h", "127.0.0.1", "-p", str(server.mqtt_port), *user, *options]


def run_command(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)


@pytest.mark.parametrize("qos", ["0", "1", "2"])
def test_mosquitto_sub_receives_messages_of_mosquitto_pub(broker: Server, qos: str) -> None:
    subscriber, publisher = made(broker, f"sub-{qos}"), made(broker, f"pub-{qos}")
    options = ["-t", "agents/#", "-q", qos, "-C", "1", "-F", "%t %q %r %p"]
    with subprocess.Popen(
        mosquitto("sub", broker, subscriber, *options), stdout=subprocess.PIPE, text=True
    ) as listening:
        wait_until(lambda: has_subscription(broker, subscriber))
        sent = run_command(
            mosquitto("pub", broker, publisher, "-t", "agents/x", "-m", "hello", "-q", qos)
        )
        assert sent.returncode == 0, sent.stderr
        output, _ = listening.communicate(timeout=20)
    assert output == f"agents/x {qos} 0 hello\n"


def test_mosquitto_sub_receives_a_retained_message(broker: Server) -> None:
    login = made(broker, "retained")
    sent = run_command(
        mosquitto("pub", broker, login, "-t", "agents/kept", "-m", "old", "-r", "-q", "1")
    )
    assert sent.returncode == 0, sent.stderr
    options = ["-t", "agents/kept", "-C", "1", "-W", "10", "-F", "%t %r %p"]
    assert run_command(mosquitto("sub", broker, login, *options)).stdout == "agents/kept 1 old\n"
    assert (
        run_command(mosquitto("pub", broker, login, "-t", "agents/kept", "-n", "-r")).returncode
        == 0
    )


@pytest.mark.parametrize("program", ["pub", "sub"])
def test_a_wrong_password_shows_in_mosquittos_exit_code(broker: Server, program: str) -> None:
    login = made(broker, f"wrong-{program}")._replace(password="wrong")
    message = ["-m", "x"] if program == "pub" else []
    done = run_command(mosquitto(program, broker, login, "-t", "agents/x", *message))
    assert done.returncode == CONNECTION_REFUSED
    assert "not authorised" in done.stderr


def test_mosquitto_sub_reports_a_denied_topic(broker: Server) -> None:
    done = run_command(
        mosquitto("sub", broker, made(broker, "denied"), "-t", "private/#", "-W", "5")
    )
    assert "All subscription requests were denied" in done.stderr


def test_mosquitto_reports_that_mqtt_5_is_not_supported(broker: Server) -> None:
    login = made(broker, "newer")
    done = run_command(mosquitto("pub", broker, login, "-V", "5", "-t", "agents/x", "-m", "x"))
    assert "Unsupported Protocol Version" in done.stderr
    assert run_command(mosquitto("pub", broker, login, "-t", "agents/x", "-m", "x")).returncode == 0


class NodeClient:
    """MQTT.js in a process of its own, which prints its events."""

    def __init__(self, url: str, login: Login, mqtt_id: str, *settings: str) -> None:
        self.process = subprocess.Popen(
            ["node", NODE / "client.js", url, *login, mqtt_id, *settings],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )

    def send_command(self, command: str, **more: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"command": command, **more}) + "\n")

    def next_event(self, event: str) -> dict[str, Any]:
        """Return the next event with that name, and skip those before it."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            message: dict[str, Any] = json.loads(line)
            if message.pop("event") == event:
                return message
        raise AssertionError(f"MQTT.js ended without {event}")


@contextmanager
def node(url: str, login: Login, mqtt_id: str, *settings: str) -> Iterator[NodeClient]:
    """Run MQTT.js until the block ends; its settings as JSON, `{}` for its defaults."""
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
def test_mqtt_js_subscribes_and_publishes_in_node(broker: Server, scheme: str) -> None:
    login, url = made(broker, f"node-{scheme}"), urls(broker)[scheme]
    with node(url, login, f"node-{scheme}") as client:
        assert client.next_event("connect") == {}
        client.send_command("subscribe", topic="agents/node/#", qos=2)
        assert client.next_event("subscribe") == {"granted": [2]}
        for qos in (0, 1, 2):
            client.send_command(
                "publish", topic=f"agents/node/{qos}", payload="é", qos=qos, retain=False
            )
            assert client.next_event("message") == {
                "topic": f"agents/node/{qos}", "payload": "é", "qos": qos, "retain": False
            }  # fmt: skip
        client.send_command("subscribe", topic="private/#", qos=1)
        assert client.next_event("subscribe")["granted"] == [128]
    with node(url, login._replace(password="wrong"), "wrong") as refused:
        assert refused.next_event("error")["code"] == CONNECTION_REFUSED


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
        """Log nothing."""


@pytest.fixture(scope="module")
def site() -> Iterator[int]:
    """Serve the page on a separate port, and thus under a separate origin."""
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
    body = {
        "name": "live-page",
        "type": "publishable",
        "allowed_origins": [f"http://127.0.0.1:{site}"],
    }
    with broker.owner() as owner:
        return str(owner.post("/v2/keys", json=body).json()["secret"])


def address(server: Server, host: str, site: int, login: Login, key: str) -> str:
    fields = {"broker": urls(server)["ws"], "api": server.url, "key": key, **login._asdict()}
    return f"http://{host}:{site}/#{urlencode(fields)}"


@pytest.mark.browser
def test_a_page_receives_its_own_message_sent_with_a_publishable_key(
    broker: Server, site: int, page_key: str, page: Page
) -> None:
    page.goto(address(broker, "127.0.0.1", site, made(broker, "page"), page_key))
    page.get_by_text("listening").wait_for()
    response = page.evaluate("publish('public/news', {'from': 'the page'})")
    assert (response["status"], response["success"]) == (200, True)
    page.get_by_text('public/news: {"from":"the page"}').wait_for()
    # A page can also read the reason for a refusal.
    denied = page.evaluate("publish('agents/x', 1)")
    assert (denied["status"], denied["code"]) == (403, "publish_denied")


@pytest.mark.browser
def test_a_page_of_another_origin_is_refused_and_can_read_the_reason(
    broker: Server, site: int, page_key: str, page: Page
) -> None:
    page.goto(address(broker, "localhost", site, made(broker, "elsewhere"), page_key))
    page.get_by_text("listening").wait_for()
    response = page.evaluate("publish('public/news', 1)")
    assert (response["status"], response["code"]) == (403, "origin_not_allowed")


@pytest.mark.browser
def test_a_page_with_a_wrong_password_gets_an_error(
    broker: Server, site: int, page_key: str, page: Page
) -> None:
    login = made(broker, "page-wrong")._replace(password="wrong")
    page.goto(address(broker, "127.0.0.1", site, login, page_key))
    page.get_by_text(f"refused: {CONNECTION_REFUSED}").wait_for()
