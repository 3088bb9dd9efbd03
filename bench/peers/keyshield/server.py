"""keyshield on FastAPI: `server.py fill COUNT FILE`, or `server.py plain|cached PORT` to serve.

The random delay of 0.1 to 0.3 s for each response is turned off. `cached` starts with all keys in
its cache, as if each had been verified before, and they never expire.
"""

import asyncio
import hashlib
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import uvicorn
from aiocache import SimpleMemoryCache
from fastapi import FastAPI, HTTPException
from keyshield import ApiKeyService
from keyshield.domain.entities import ApiKey
from keyshield.domain.errors import InvalidKey, KeyNotFound
from keyshield.hasher.argon2 import Argon2ApiKeyHasher
from keyshield.repositories.sql import ApiKeyModel, SqlAlchemyApiKeyRepository
from keyshield.services.cached import CachedApiKeyService
from pydantic import BaseModel
from sqlalchemy import UniqueConstraint, event
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

# Because of the hashing, a write may wait longer than SQLite's default of five seconds.
ENGINE = create_async_engine(
    f"sqlite+aiosqlite:///{os.environ['BENCH_DATABASE']}", connect_args={"timeout": 60}
)
SESSIONS = async_sessionmaker(ENGINE, expire_on_commit=False)
HASHER = Argon2ApiKeyHasher(pepper="of the benchmark only")
# All keys share one secret and so one Argon2 hash: creating 10,000 would take minutes, and checking
# one costs the same.
SECRET = "A" * 40 + "b" * 24
CACHE = SimpleMemoryCache()
CACHED = sys.argv[1:2] == ["cached"]


@event.listens_for(ENGINE.sync_engine, "connect")
def _fast(connection, _) -> None:  # noqa: ANN001 - SQLAlchemy's types
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")


def text_of(number: int) -> str:
    """Return key `number`."""
    return f"ak_v1-{hashlib.sha256(b'%d' % number).hexdigest()[:16]}-{SECRET}"


async def fill(texts: list[str]) -> None:
    """Create the table and the keys."""
    table = ApiKeyModel.__table__
    table.c.key_hash.unique = False
    for rule in list(table.constraints):
        if isinstance(rule, UniqueConstraint) and "key_hash" in rule.columns:
            table.constraints.discard(rule)
    shared = HASHER.hash(SECRET)
    async with ENGINE.begin() as connection:
        await connection.run_sync(table.create)
    async with SESSIONS() as session, session.begin():
        for n, text in enumerate(texts):
            key_id = text.split("-")[1]
            entity = ApiKey(f"{n}", f"bench-{n}", key_id=key_id, key_hash=shared, key_secret=SECRET)
            session.add(SqlAlchemyApiKeyRepository._to_model(entity))  # noqa: SLF001


@asynccontextmanager
async def fill_cache(_: FastAPI) -> AsyncIterator[None]:
    """Fill the cache like `CachedApiKeyService` after a first verification."""
    if CACHED:
        async with SESSIONS() as session:
            repository = SqlAlchemyApiKeyRepository(session)
            for entity in await repository.list(limit=1_000_000):
                text = f"ak_v1-{entity.key_id}-{SECRET}"
                await CACHE.set(hashlib.sha256(text.encode()).hexdigest(), entity)
    yield


app = FastAPI(lifespan=fill_cache)


class VerifyRequest(BaseModel):
    """The body of a verification."""

    key: str


@app.post("/verify")
async def verify(body: VerifyRequest) -> dict[str, bool]:
    """Return 200 if the key is valid, else 401."""
    async with SESSIONS() as session, session.begin():
        service = _service(SqlAlchemyApiKeyRepository(session))
        try:
            await service.verify_key(body.key)
        except (InvalidKey, KeyNotFound):
            raise HTTPException(401) from None
    return {"valid": True}


def _service(repository: SqlAlchemyApiKeyRepository) -> ApiKeyService:
    if CACHED:
        return CachedApiKeyService(repository, HASHER, CACHE, min_delay=0, max_delay=0)
    return ApiKeyService(repo=repository, hasher=HASHER, min_delay=0, max_delay=0)


if __name__ == "__main__":
    if sys.argv[1] == "fill":
        made = [text_of(n) for n in range(int(sys.argv[2]))]
        asyncio.run(fill(made))
        Path(sys.argv[3]).write_text("\n".join(made))
    else:
        uvicorn.run(app, port=int(sys.argv[2]), access_log=False, log_level="warning")
