"""Static files: read once, named by their content, compressed at the start, kept for a year."""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path

from fastapi import APIRouter, Request, Response

from wardkey.domain.errors import RouteNotFound
from wardkey.web.problems import problem_response

router = APIRouter(include_in_schema=False)

_STATIC_DIR = Path(__file__).parents[1] / "static"
_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".woff2": "font/woff2",
}


@dataclass(frozen=True, slots=True)
class Asset:
    """A static file; `zipped` is empty where compressing gains nothing."""

    name: str
    media_type: str
    body: bytes
    zipped: bytes


@lru_cache(maxsize=1)
def assets() -> dict[str, Asset]:
    """Return every static file by the name that it has in the folder."""
    files = sorted(path for path in _STATIC_DIR.iterdir() if path.suffix in _TYPES)
    found = {path.name: _asset(path.name, path.read_bytes()) for path in files}
    # A style sheet names its fonts, so it is named after them.
    for name in [name for name in found if name.endswith(".css")]:
        body = found[name].body
        for other in found.values():
            body = body.replace(b"url(%b)" % _plain(other.name), b"url(%b)" % other.name.encode())
        found[name] = _asset(name, body)
    return found


@lru_cache(maxsize=128)
def asset_url(name: str) -> str:
    """Return the address of a static file."""
    return f"/static/{assets()[name].name}"


@lru_cache(maxsize=1)
def _by_hashed_name() -> dict[str, Asset]:
    return {asset.name: asset for asset in assets().values()}


@router.get("/static/{name}")
def send_asset(name: str, request: Request) -> Response:
    """Send a file under its hashed name, which never means anything else."""
    asset = _by_hashed_name().get(name)
    if asset is None:
        return problem_response(RouteNotFound(), request)
    headers = {"Cache-Control": "public, max-age=31536000, immutable", "Vary": "Accept-Encoding"}
    if asset.zipped and "gzip" in request.headers.get("accept-encoding", ""):
        headers["Content-Encoding"] = "gzip"
        return Response(asset.zipped, 200, headers, asset.media_type)
    return Response(asset.body, 200, headers, asset.media_type)


def _asset(name: str, body: bytes) -> Asset:
    stem, _, suffix = name.rpartition(".")
    hashed = f"{stem}.{blake2b(body, digest_size=6).hexdigest()}.{suffix}"
    zipped = gzip.compress(body, 9, mtime=0) if suffix != "woff2" else b""
    return Asset(hashed, _TYPES[f".{suffix}"], body, zipped)


def _plain(hashed: str) -> bytes:
    stem, _, suffix = hashed.rpartition(".")
    return f"{stem.rpartition('.')[0]}.{suffix}".encode()
