// Exchanges a token and refreshes the grant with openid-client (on oauth4webapi), by its JSON
// argument: {"url", "secret", "form"}; prints both answers.
import * as oauth from "openid-client";

const wanted = JSON.parse(process.argv[2]);
const server = { issuer: wanted.url, token_endpoint: `${wanted.url}/oauth/token` };
// The library's form of RFC 6749 §2.3.1 escapes the underscores of a key.
const client = oauth.ClientSecretBasic(wanted.secret);
const config = new oauth.Configuration(server, "my_app", wanted.secret, client);
oauth.allowInsecureRequests(config);
const { grant_type: grant, ...parameters } = wanted.form;
const exchanged = await oauth.genericGrantRequest(config, grant, parameters);
const refreshed = await oauth.refreshTokenGrant(config, exchanged.refresh_token);
console.log(JSON.stringify([exchanged, refreshed]));
