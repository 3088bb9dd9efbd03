"""The servers to measure: Wardkey, servers of constant responses, and peers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.fill import Filled
from bench.load import Case, Server, write_requests

PEERS = Path(__file__).with_name("peers")
# Programs installed for the benchmarks; `make clean` removes them.
CACHE = Path(__file__).parents[1] / ".bench"
PEER_KEYS = 10_000
VALID = '"valid":true'

# What each peer leaves out or does differently, from reading its code.
PEER_NOTES = {
    "djangorestframework-api-key": "one indexed read for each request, unkeyed SHA-512 in constant "
    "time; no last use, no permissions, no rotation, no audit; a revocation takes effect at "
    "the next request. gunicorn, one worker, four threads.",
    "keyshield": "Argon2 for each request, in the event loop; writes the last use into the "
    "database for each request; no rotation, no audit; a revocation takes effect at the next "
    "request. Its random delay of 0.1 to 0.3 s for each response is turned off here.",
    "keyshield, cached": "a cache hit compares no hash, but still writes the last use for each "
    "request; with several processes a revoked key stays valid in the others until the cache "
    "entry expires, 300 s by default. All keys are cached here, and the delay is turned off.",
    "better-auth": "one indexed read by unkeyed SHA-256 and one write for each request; no "
    "overlap in rotation, no audit; a revocation takes effect at the next request. Its limit "
    "of ten requests a day for each key is turned off here.",
}


def post(path: str, body: str, headers: str = "") -> bytes:
    """Return the bytes of a POST with a JSON body."""
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{headers}Content-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode()


def wardkey(folder: Path, deployment: Filled, most: int) -> tuple[Server, Case, Case]:
    """Return Wardkey with one worker, and its verify and forward-auth cases."""
    server = Server(
        f"wardkey-{deployment.count}",
        [sys.executable, "-m", "wardkey", "up", "--no-messaging",
         "--data-dir", str(deployment.data_dir), "--listen", "127.0.0.1:PORT"],
        folder / f"wardkey-{deployment.count}",
    )  # fmt: skip
    texts = deployment.sample(most)
    caller = f"Authorization: Bearer {deployment.caller}\r\n"
    verifies = folder / f"verify-{deployment.count}"
    size = write_requests(
        verifies, [post("/v2/keys/verify", f'{{"key":"{text}"}}', caller) for text in texts]
    )
    auths = folder / f"auth-{deployment.count}"
    auth_size = write_requests(
        auths,
        [
            f"GET /v2/auth HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {text}\r\n"
            "User-Agent: bench\r\n\r\n".encode()
            for text in texts
        ],
    )
    name = f"{deployment.count:,} keys"
    return (
        server,
        Case(f"Wardkey verify, {name}", server, verifies, size, VALID, warm=True),
        Case(
            f"Wardkey forward-auth, {name}",
            server,
            auths,
            auth_size,
            "wardkey-verdict: valid",
            warm=True,
        ),
    )


def constants(folder: Path, like_verify: Case, like_auth: Case) -> list[Case]:
    """Return cases of servers with a constant response, for the same requests as Wardkey."""
    cases = []
    go = folder / "go" / "hello"
    _run(["go", "build", "-o", str(go), str(PEERS / "go" / "hello.go")])
    conf = folder / "nginx" / "nginx.conf"
    conf.parent.mkdir(parents=True, exist_ok=True)
    hello = str(PEERS / "uvicorn" / "hello.py")
    nginx = (PEERS / "nginx" / "nginx.conf").read_text().replace("FOLDER", str(conf.parent))
    servers = {
        "Go net/http": ([str(go), "PORT"], {"GOMAXPROCS": "1"}),
        "uvicorn, in place": ([sys.executable, hello, "in-place", "PORT"], {}),
        "uvicorn, raw ASGI": ([sys.executable, hello, "asgi", "PORT"], {}),
        # nginx reads its port from a file, so a shell writes it there first.
        "nginx": (
            ["sh", "-c", f"sed -i s/LISTEN/PORT/ {conf}; exec nginx -e stderr -c {conf}"],
            {"PATH": "/usr/local/sbin:/usr/sbin:/usr/local/bin:/usr/bin:/bin"},
        ),
    }
    conf.write_text(nginx)
    for name, (command, environment) in servers.items():
        server = Server(name, command, folder / name.replace(" ", "-").replace("/", "-"),
                        environment)  # fmt: skip
        for kind, like in (("POST", like_verify), ("GET", like_auth)):
            cases.append(Case(f"{name}, constant {kind}", server, like.requests, like.size, VALID))
    return cases


def peers(folder: Path, say: Callable[[str], None]) -> list[Case]:
    """Return the peers' cases; install them if needed, and report one that can't be installed."""
    cases = []
    for prepare in (_drf, _keyshield, _better_auth):
        try:
            cases += prepare(folder)
        except (subprocess.CalledProcessError, FileNotFoundError) as error:
            output = getattr(error, "stderr", b"") or b""
            name = prepare.__name__.strip("_")
            say(f"{name} could not be installed: {error} {output.decode()[-300:]}")
    return cases


def _drf(folder: Path) -> list[Case]:
    python, code = _venv("drf"), PEERS / "drf"
    database = {"BENCH_DATABASE": str(folder / "drf.db"), "PYTHONPATH": str(code)}
    texts = _fill([str(python), str(code / "server.py")], folder / "drf.keys", database)
    command = [str(python), "-m", "gunicorn", "--worker-class", "gthread", "--threads", "4",
               "--keep-alive", "60", "--timeout", "0",
               "--no-control-socket", "--bind", "127.0.0.1:PORT", "server:application"]  # fmt: skip
    server = Server("drf", command, folder / "drf", database)
    requests = [post("/verify", "{}", f"Authorization: Api-Key {text}\r\n") for text in texts]
    return [_case("djangorestframework-api-key", server, requests)]


def _keyshield(folder: Path) -> list[Case]:
    python, code = _venv("keyshield"), str(PEERS / "keyshield" / "server.py")
    cases = []
    for name, mode in (("keyshield", "plain"), ("keyshield, cached", "cached")):
        # Separate databases: a paused server may hold its database's lock.
        database = {"BENCH_DATABASE": str(folder / f"keyshield-{mode}.db")}
        texts = _fill([str(python), code], folder / f"keyshield-{mode}.keys", database)
        server = Server(name, [str(python), code, mode, "PORT"], folder / mode, database)
        cases.append(_case(name, server, _bodies(texts)))
    # Argon2 takes about 50 ms, and concurrent requests wait for each other.
    cases[0].least_s, cases[0].connections = 4, 4
    return cases


def _better_auth(folder: Path) -> list[Case]:
    home = CACHE / "better_auth"
    home.mkdir(parents=True, exist_ok=True)
    manifest = PEERS / "better_auth" / "package.json"
    mark = home / "installed.json"
    if not mark.exists() or mark.read_text() != manifest.read_text():
        shutil.copy(manifest, home / "package.json")
        _run(["npm", "install", "--no-audit", "--no-fund", "--no-package-lock"], home)
        shutil.copy(manifest, mark)
    # Node searches for packages beside the program.
    shutil.copy(PEERS / "better_auth" / "server.mjs", home)
    database = {"BENCH_DATABASE": str(folder / "better-auth.db"), "NODE_ENV": "production"}
    command = ["node", str(home / "server.mjs")]
    texts = _fill(command, folder / "better-auth.keys", database)
    server = Server("better-auth", [*command, "serve", "PORT"], folder / "better-auth", database)
    return [_case("better-auth", server, _bodies(texts))]


def _case(name: str, server: Server, requests: Sequence[bytes]) -> Case:
    path = server.folder.with_name(f"{server.folder.name}.requests")
    return Case(name, server, path, write_requests(path, requests), VALID)


def _bodies(texts: Sequence[str]) -> list[bytes]:
    return [post("/verify", f'{{"key":"{text}"}}') for text in texts]


def _fill(command: Sequence[str], file: Path, environment: dict[str, str]) -> list[str]:
    if not file.exists():
        _run([*command, "fill", str(PEER_KEYS), str(file)], file.parent, environment)
    return file.read_text().split("\n")


def _venv(name: str) -> Path:
    home, requirements = CACHE / name, PEERS / name / "requirements.txt"
    python, mark = home / "bin" / "python", home / "installed.txt"
    if not mark.exists() or mark.read_text() != requirements.read_text():
        _run([sys.executable, "-m", "venv", "--clear", str(home)])
        _run([str(python), "-m", "pip", "--disable-pip-version-check", "--quiet", "install",
              "--requirement", str(requirements)])  # fmt: skip
        shutil.copy(requirements, mark)
    return python


def _run(
    command: Sequence[str], folder: Path | None = None, environment: dict[str, str] | None = None
) -> None:
    subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **(environment or {})},
        check=True,
        capture_output=True,
    )
