// better-auth's API keys on node:http: `server.mjs fill COUNT FILE` creates keys, `server.mjs serve
// PORT` verifies them. Its default limit of ten requests a day for each key is turned off.
import { createServer } from "node:http";
import { writeFileSync } from "node:fs";
import Database from "better-sqlite3";
import { betterAuth } from "better-auth";
import { getMigrations } from "better-auth/db/migration";
import { apiKey } from "@better-auth/api-key";

const database = new Database(process.env.BENCH_DATABASE);
database.pragma("journal_mode = WAL");
database.pragma("synchronous = NORMAL");

const options = {
  database,
  baseURL: "http://127.0.0.1",
  secret: "of the benchmark only, and long enough",
  emailAndPassword: { enabled: true },
  telemetry: { enabled: false },
  logger: { level: "error" },
  plugins: [apiKey({ rateLimit: { enabled: false } })],
};
const auth = betterAuth(options);

async function fill(count, file) {
  await (await getMigrations(options)).runMigrations();
  const { user } = await auth.api.signUpEmail({
    body: { name: "Bench", email: "admin@acme.example", password: "a password of some length" },
  });
  const texts = [];
  for (let n = 0; n < count; n++) {
    const made = await auth.api.createApiKey({ body: { userId: user.id, name: `bench-${n}` } });
    texts.push(made.key);
  }
  writeFileSync(file, texts.join("\n"));
}

function serve(port) {
  createServer((request, response) => {
    let text = "";
    request.on("data", (part) => (text += part));
    request.on("end", async () => {
      const { valid } = await auth.api.verifyApiKey({ body: { key: JSON.parse(text).key } });
      response.statusCode = valid ? 200 : 401;
      response.setHeader("Content-Type", "application/json");
      response.end(JSON.stringify({ valid }));
    });
  }).listen(port, "127.0.0.1");
}

if (process.argv[2] === "fill") {
  await fill(Number(process.argv[3]), process.argv[4]);
  database.close();
} else {
  serve(Number(process.argv[3]));
}
