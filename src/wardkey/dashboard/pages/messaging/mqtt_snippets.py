"""Code snippets for signing in to MQTT as a client."""

from __future__ import annotations

from urllib.parse import urlsplit

from wardkey.dashboard.pages.keys.snippets import Snippet
from wardkey.web.context import AppContext

_MOSQUITTO = """mosquitto_sub -h {host} -p {port}{tls} \\
  -u {username} -P "$MQTT_PASSWORD" \\
  -i {client_id} -t 'agents/{client_id}/#'
"""
_PAHO = """import os
import paho.mqtt.client as mqtt

client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id="{client_id}")
client.username_pw_set("{username}", os.environ["MQTT_PASSWORD"])
{tls}client.on_message = lambda client, data, message: print(message.topic, message.payload)
client.on_connect = lambda client, *_: client.subscribe("agents/{client_id}/#")
client.connect("{host}", {port})
client.loop_forever()
"""
_MQTT_JS = """import mqtt from "mqtt";

const client = mqtt.connect("{url}", {{
  clientId: "{client_id}",
  username: "{username}",
  password: process.env.MQTT_PASSWORD,
}});
client.on("connect", () => client.subscribe("agents/{client_id}/#"));
client.on("message", (topic, payload) => console.log(topic, payload.toString()));
"""


def mqtt_snippets(
    ctx: AppContext, name: str, username: str, password: str = ""
) -> tuple[Snippet, ...]:
    """Return the snippets of a client, or none without messaging.

    Only `.env` contains the password; the others use an environment variable.
    """
    if not ctx.mqtt_url:
        return ()
    parts = urlsplit(ctx.mqtt_url)
    tls = parts.scheme == "mqtts"
    values = {
        "host": parts.hostname,
        "port": parts.port,
        "username": username,
        "client_id": name,
        "url": ctx.websocket_url or ctx.mqtt_url,
    }
    env = f"# .env: never commit this file\nMQTT_USERNAME={username}\nMQTT_PASSWORD={password}\n"
    return (
        *((Snippet(".env", env, secret=True),) if password else ()),
        Snippet("mosquitto", _MOSQUITTO.format(**values, tls=" --tls-use-os-certs" * tls)),
        Snippet("paho", _PAHO.format(**values, tls="client.tls_set()\n" * tls)),
        Snippet("MQTT.js", _MQTT_JS.format(**values)),
    )
