"""The servers that are measured: Wardkey, constants to hold it against, and its peers."""

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
# What is installed for the benchmarks stays here; `make clean` removes it.
CACHE = Path(__file__).parents[1] / ".bench"
PEER_KEYS = 10_000
VALID = '"valid":true'

# What each peer leaves out or does otherwise, found by reading its code.
TOLD = {
    "djangorestframework-api-key": "one indexed read for each request, unkeyed SHA-512 in constant "
    "time; no last use, no permissions, no rotation, no audit; a revocation holds at the next "
    "request. gunicorn, one worker, four threads.",
    "keyshield": "Argon2 for each request, in the event loop; writes the last use into the "
    "database for each request; no rotation, no audit; a revocation holds at the next request. "
    "Its random delay of 0.1 to 0.3 s for each answer is off here.",
    "keyshield, cached": "a hit in the cache compares no hash; still writes the last use for each "
    "request; with several processes a revoked key stays valid in the others until the cache "
    "forgets it, 300 s by default. All keys are in the cache here, the delay is off.",
    "better-auth": "one indexed read by unkeyed SHA-256 and one write for each request; no "
    "overlap in rotation, no audit; a revocation holds at the next request. Its limit of ten "
    "requests a day for each key is off here.",
}


def post(path: str, body: str, headers: str = "") -> bytes:
    """Return the bytes of a POST with a JSON body."""
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{headers}Content-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode()


def wardkey(place: Path, deployment: Filled, most: int) -> tuple[Server, Case, Case]:
    """Return Wardkey on one worker, and its verify and forward-auth."""
    server = Server(
        f"wardkey-{deployment.count}",
        [sys.executable, "-m", "wardkey", "up", "--no-messaging",
         "--data-dir", str(deployment.data_dir), "--listen", "127.0.0.1:PORT"],
        place / f"wardkey-{deployment.count}",
    )  # fmt: skip
    texts = deployment.asked(most)
    caller = f"Authorization: Bearer {deployment.caller}\r\n"
    verifies = place / f"verify-{deployment.count}"
    size = write_requests(
        verifies, [post("/v2/keys/verify", f'{{"key":"{text}"}}', caller) for text in texts]
    )
    auths = place / f"auth-{deployment.count}"
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


def constants(place: Path, like_verify: Case, like_auth: Case) -> list[Case]:
    """Return servers that answer a constant to the very bytes that Wardkey is asked."""
    cases = []
    go = place / "go" / "hello"
    _run(["go", "build", "-o", str(go), str(PEERS / "go" / "hello.go")])
    conf = place / "nginx" / "nginx.conf"
    conf.parent.mkdir(parents=True, exist_ok=True)
    hello = str(PEERS / "uvicorn" / "hello.py")
    nginx = (PEERS / "nginx" / "nginx.conf").read_text().replace("FOLDER", str(conf.parent))
    servers = {
        "Go net/http": ([str(go), "PORT"], {"GOMAXPROCS": "1"}),
        "uvicorn, in place": ([sys.executable, hello, "in-place", "PORT"], {}),
        "uvicorn, raw ASGI": ([sys.executable, hello, "asgi", "PORT"], {}),
        # nginx reads its port from a file, so the shell that becomes it fills that in.
        "nginx": (
            ["sh", "-c", f"sed -i s/LISTEN/PORT/ {conf}; exec nginx -e stderr -c {conf}"],
            {"PATH": "/usr/local/sbin:/usr/sbin:/usr/local/bin:/usr/bin:/bin"},
        ),
    }
    conf.write_text(nginx)
    for name, (command, environment) in servers.items():
        server = Server(name, command, place / name.replace(" ", "-").replace("/", "-"),
                        environment)  # fmt: skip
        for kind, like in (("POST", like_verify), ("GET", like_auth)):
            cases.append(Case(f"{name}, constant {kind}", server, like.requests, like.size, VALID))
    return cases


def peers(place: Path, say: Callable[[str], None]) -> list[Case]:
    """Return the peers, installed if they are not yet; one that cannot be had is told of."""
    cases = []
    for made in (_drf, _keyshield, _better_auth):
        try:
            cases += made(place)
        except (subprocess.CalledProcessError, FileNotFoundError) as error:
            said = getattr(error, "stderr", b"") or b""
            say(f"could not be had: {made.__name__.strip('_')}: {error} {said.decode()[-300:]}")
    return cases


def _drf(place: Path) -> list[Case]:
    python, code = _venv("drf"), PEERS / "drf"
    database = {"BENCH_DATABASE": str(place / "drf.db"), "PYTHONPATH": str(code)}
    texts = _fill([str(python), str(code / "server.py")], place / "drf.keys", database)
    command = [str(python), "-m", "gunicorn", "--worker-class", "gthread", "--threads", "4",
               "--keep-alive", "60", "--timeout", "0",
               "--no-control-socket", "--bind", "127.0.0.1:PORT", "server:application"]  # fmt: skip
    server = Server("drf", command, place / "drf", database)
    asked = [post("/verify", "{}", f"Authorization: Api-Key {text}\r\n") for text in texts]
    return [_case("djangorestframework-api-key", server, asked)]


def _keyshield(place: Path) -> list[Case]:
    python, code = _venv("keyshield"), str(PEERS / "keyshield" / "server.py")
    cases = []
    for name, way in (("keyshield", "plain"), ("keyshield, cached", "cached")):
        # Each its own: one that is stopped dead may hold its database's lock.
        database = {"BENCH_DATABASE": str(place / f"keyshield-{way}.db")}
        texts = _fill([str(python), code], place / f"keyshield-{way}.keys", database)
        server = Server(name, [str(python), code, way, "PORT"], place / way, database)
        cases.append(_case(name, server, _bodies(texts)))
    # Argon2 takes some 50 ms, and requests at once wait for each other.
    cases[0].least_s, cases[0].connections = 4, 4
    return cases


def _better_auth(place: Path) -> list[Case]:
    home = CACHE / "better_auth"
    home.mkdir(parents=True, exist_ok=True)
    wanted = PEERS / "better_auth" / "package.json"
    mark = home / "installed.json"
    if not mark.exists() or mark.read_text() != wanted.read_text():
        shutil.copy(wanted, home / "package.json")
        _run(["npm", "install", "--no-audit", "--no-fund", "--no-package-lock"], home)
        shutil.copy(wanted, mark)
    # Node looks for packages beside the program.
    shutil.copy(PEERS / "better_auth" / "server.mjs", home)
    database = {"BENCH_DATABASE": str(place / "better-auth.db"), "NODE_ENV": "production"}
    command = ["node", str(home / "server.mjs")]
    texts = _fill(command, place / "better-auth.keys", database)
    server = Server("better-auth", [*command, "serve", "PORT"], place / "better-auth", database)
    return [_case("better-auth", server, _bodies(texts))]


def _case(name: str, server: Server, asked: Sequence[bytes]) -> Case:
    path = server.folder.with_name(f"{server.folder.name}.requests")
    return Case(name, server, path, write_requests(path, asked), VALID)


def _bodies(texts: Sequence[str]) -> list[bytes]:
    return [post("/verify", f'{{"key":"{text}"}}') for text in texts]


def _fill(command: Sequence[str], file: Path, environment: dict[str, str]) -> list[str]:
    if not file.exists():
        _run([*command, "fill", str(PEER_KEYS), str(file)], file.parent, environment)
    return file.read_text().split("\n")


def _venv(name: str) -> Path:
    home, wanted = CACHE / name, PEERS / name / "requirements.txt"
    python, mark = home / "bin" / "python", home / "installed.txt"
    if not mark.exists() or mark.read_text() != wanted.read_text():
        _run([sys.executable, "-m", "venv", "--clear", str(home)])
        _run([str(python), "-m", "pip", "--disable-pip-version-check", "--quiet", "install",
              "--requirement", str(wanted)])  # fmt: skip
        shutil.copy(wanted, mark)
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
