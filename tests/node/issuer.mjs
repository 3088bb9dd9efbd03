// oauth2-mock-server as an identity provider: takes commands as JSON lines, answers each with one.
// Every prefix of its address is an issuer of its own, with the same keys, as
// /p1/.well-known/openid-configuration and, as Supabase has it, /p1/auth/v1/.well-known/jwks.json.
import { createInterface } from "node:readline";
import { HttpServer, OAuth2Issuer, OAuth2Service } from "oauth2-mock-server";

const DISCOVERY = "/.well-known/openid-configuration";
const KEY_SETS = ["/jwks", "/.well-known/jwks.json"];
const issuer = new OAuth2Issuer();
const service = new OAuth2Service(issuer);
const withdrawn = new Set();
const nameless = new Set();
const fetches = {};
let maxAge = null;
let delay = 0;

const keySet = () => issuer.keys.toJSON()
  .filter(({ kid }) => !withdrawn.has(kid))
  .map(({ kid, ...key }) => (nameless.has(kid) ? key : { kid, ...key }));

function answer(request, response) {
  const path = request.url;
  fetches[path] = (fetches[path] ?? 0) + 1;
  const send = (document) => setTimeout(() => {
    if (maxAge !== null) response.setHeader("Cache-Control", `max-age=${maxAge}`);
    response.setHeader("Content-Type", "application/json");
    response.end(JSON.stringify(document));
  }, delay);
  const ending = KEY_SETS.find((one) => path.endsWith(one));
  if (ending) return send({ keys: keySet() });
  if (path.endsWith(DISCOVERY) && path !== DISCOVERY) {
    const own = issuer.url + path.slice(0, -DISCOVERY.length);
    return send({ issuer: own, jwks_uri: `${own}/jwks` });
  }
  return service.requestHandler(request, response);
}

const server = new HttpServer(answer);
let port = 0;

const commands = {
  async start() {
    await server.start(port, "127.0.0.1");
    port = server.address().port;
    issuer.url = `http://127.0.0.1:${port}`;
    return { url: issuer.url };
  },
  stop: () => server.stop(),
  generate: async ({ alg, kid }) => {
    withdrawn.delete(kid);
    await issuer.keys.generate(alg, { kid });
  },
  withdraw: ({ kid }) => { withdrawn.add(kid); },
  unname: ({ kid }) => { nameless.add(kid); },
  serve: (wanted) => {
    maxAge = wanted.max_age ?? null;
    delay = wanted.delay_ms ?? 0;
  },
  token: async ({ kid, claims, header }) => {
    const put = (target, values) => {
      for (const [name, value] of Object.entries(values ?? {})) {
        if (value === null) delete target[name];
        else target[name] = value;
      }
    };
    const scopesOrTransform = (head, payload) => { put(payload, claims); put(head, header); };
    return { token: await issuer.buildToken({ kid, scopesOrTransform }) };
  },
  key: ({ kid }) => ({ key: issuer.keys.toJSON().find((key) => key.kid === kid) }),
  fetches: () => ({ fetches }),
};

const lines = createInterface({ input: process.stdin });
for await (const line of lines) {
  const { command, ...rest } = JSON.parse(line);
  try {
    console.log(JSON.stringify((await commands[command](rest)) ?? {}));
  } catch (fault) {
    console.log(JSON.stringify({ fault: String(fault) }));
  }
}
process.exit(0);
