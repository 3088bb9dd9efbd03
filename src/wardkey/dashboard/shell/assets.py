"""Static files: loaded and compressed once, named by content hash, cached for a year."""

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
    """A static file; `zipped` is empty for formats that are already compressed."""

    name: str
    media_type: str
    body: bytes
    zipped: bytes


@lru_cache(maxsize=1)
def assets() -> dict[str, Asset]:
    """Return all static files, keyed by their name in the folder."""
    files = sorted(path for path in _STATIC_DIR.iterdir() if path.suffix in _TYPES)
    by_name = {path.name: _asset(path.name, path.read_bytes()) for path in files}
    # Style sheets refer to fonts by hashed name, so their own hash comes last.
    for name in [name for name in by_name if name.endswith(".css")]:
        body = by_name[name].body
        for other in by_name.values():
            plain = _unhashed_name(other.name)
            body = body.replace(b"url(%b)" % plain, b"url(%b)" % other.name.encode())
        by_name[name] = _asset(name, body)
    return by_name


@lru_cache(maxsize=128)
def asset_url(name: str) -> str:
    """Return the URL path of a static file."""
    return f"/static/{assets()[name].name}"


@lru_cache(maxsize=1)
def _by_hashed_name() -> dict[str, Asset]:
    return {asset.name: asset for asset in assets().values()}


@router.get("/static/{name}")
def send_asset(name: str, request: Request) -> Response:
    """Return a file by its hashed name, which always has the same content."""
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


def _unhashed_name(hashed: str) -> bytes:
    stem, _, suffix = hashed.rpartition(".")
    return f"{stem.rpartition('.')[0]}.{suffix}".encode()
