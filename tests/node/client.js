// MQTT.js as a foreign client: takes commands as JSON lines, tells what happens as JSON lines.
import { createInterface } from "node:readline";
import mqtt from "mqtt";

const tell = (event, more = {}) => console.log(JSON.stringify({ event, ...more }));
const [url, username, password, clientId, settings = '{"reconnectPeriod": 0}'] = process.argv.slice(2);
const client = mqtt.connect(url, { username, password, clientId, ...JSON.parse(settings) });

client.on("connect", () => tell("connect"));
client.on("error", (error) => tell("error", { code: error.code, message: error.message }));
client.on("close", () => tell("close"));
client.on("message", (topic, payload, { qos, retain }) =>
  tell("message", { topic, payload: payload.toString(), qos, retain }));

const commands = {
  subscribe: ({ topic, qos }) =>
    client.subscribe(topic, { qos }, (error, asked, suback) =>
      tell("subscribe", { granted: [...(suback?.granted ?? [])], error: error?.message })),
  publish: ({ topic, payload, qos, retain }) =>
    client.publish(topic, payload, { qos, retain }, (error) =>
      tell("publish", { error: error?.message })),
};

const lines = createInterface({ input: process.stdin });
lines.on("line", (line) => {
  const { command, ...rest } = JSON.parse(line);
  commands[command](rest);
});
lines.on("close", () => client.end());
