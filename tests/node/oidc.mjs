// oidc-provider with one client and some users, both by its JSON argument; tells its address.
// {"client_id", "client_secret"?, "auth_method"?, "conform"?, "redirect_uris", "alg"?, "users": {e-mail: {"password", …claims}}}
import { generateKeyPairSync } from "node:crypto";
import { createServer } from "node:http";
import { Provider } from "oidc-provider";

const wanted = JSON.parse(process.argv[2]);
const alg = wanted.alg ?? "RS256";
const made = alg === "RS256"
  ? generateKeyPairSync("rsa", { modulusLength: 2048 })
  : generateKeyPairSync("ec", { namedCurve: "P-256" });
const key = { ...made.privateKey.export({ format: "jwk" }), use: "sig", alg, kid: "signing" };

function claimsOf(email) {
  const { password, ...claims } = wanted.users[email];
  return { sub: email, email, email_verified: true, ...claims };
}
const accountOf = (id) => {
  const email = Object.keys(wanted.users).find((one) => claimsOf(one).sub === id);
  return email && { accountId: id, claims: async () => claimsOf(email) };
};

const FORM = `<!doctype html><title>Sign in</title><form method="post">
<label>E-mail <input name="email"></label>
<label>Password <input name="password" type="password"></label>
<button>Sign in</button></form>`;

let provider;
const server = createServer((request, response) => {
  if (!request.url.startsWith("/interaction/")) return provider.callback()(request, response);
  if (request.method !== "POST") return response.setHeader("Content-Type", "text/html").end(FORM);
  let body = "";
  request.on("data", (part) => { body += part; });
  return request.on("end", () => {
    const { email, password } = Object.fromEntries(new URLSearchParams(body));
    if (wanted.users[email]?.password !== password) return response.writeHead(403).end(FORM);
    const login = { accountId: claimsOf(email).sub };
    return provider.interactionFinished(request, response, { login });
  });
});

server.listen(wanted.port ?? 0, "127.0.0.1", () => {
  const url = `http://127.0.0.1:${server.address().port}`;
  provider = new Provider(url, {
    clients: [{
      client_id: wanted.client_id,
      redirect_uris: wanted.redirect_uris,
      id_token_signed_response_alg: alg,
      ...(wanted.client_secret
        ? { client_secret: wanted.client_secret, token_endpoint_auth_method: wanted.auth_method ?? "client_secret_basic" }
        : { token_endpoint_auth_method: "none" }),
    }],
    jwks: { keys: [key] },
    cookies: { keys: ["of a test"] },
    claims: { openid: ["sub"], email: ["email", "email_verified"], profile: ["name", "team"] },
    // Otherwise only its userinfo endpoint tells them, and an app would hold a token without.
    conformIdTokenClaims: wanted.conform ?? false,
    ...(wanted.auth_method ? { clientAuthMethods: [wanted.auth_method] } : {}),
    findAccount: (_, id) => accountOf(id),
    features: { devInteractions: { enabled: false } },
    interactions: { url: (_, { uid }) => `/interaction/${uid}` },
    // Consent is not what is tested: whoever signs in has granted.
    async loadExistingGrant(ctx) {
      const { client, session, provider: { Grant } } = ctx.oidc;
      const grant = new Grant({ clientId: client.clientId, accountId: session.accountId });
      grant.addOIDCScope("openid email profile");
      await grant.save();
      return grant;
    },
  });
  console.log(JSON.stringify({ url }));
});
process.stdin.resume();
process.stdin.on("end", () => process.exit(0));
