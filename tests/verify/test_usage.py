"""Counts of verdicts and callers: none is lost, heavy callers are kept, memory is bounded."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import pytest
from sqlalchemy import func, select, text

from wardkey.actions.core.runner import Runner
from wardkey.actions.keys import imports
from wardkey.config import Config
from wardkey.db.engine import Database, wall_clock
from wardkey.db.maintenance import KEPT_USAGE_MS, clean_up_usage
from wardkey.db.schema import callers, hours, last_used, pending, refused
from wardkey.deployment import open_deployment
from wardkey.domain.callers import MOST_CALLERS
from wardkey.domain.errors import StorageBusy
from wardkey.domain.principal import Principal
from wardkey.domain.times import HOUR_MS
from wardkey.verify import usage as usage_module
from wardkey.verify.pending import MERGE_MS, merge_pending
from wardkey.verify.usage import Usage

KID, KEY = "7QdRk2mVx9Ta", "key_0fA3xQ2LmN7pR9sT1uV4wY"
AT = 500_000 * HOUR_MS


def note(usage: Usage, at: int = AT, code: str = "valid", kid: str = KID, **more: str) -> None:
    seen = {"address": "203.0.113.7", "user_agent": "curl/8.5.0 (x)", "route": "GET /v1"} | more
    usage.note(kid, KEY, code, at, seen["address"], seen["user_agent"], seen["route"])


def kept(database: Database) -> dict[str, int]:
    merge_pending(database)
    with database.usage.connect() as connection:
        rows = connection.execute(select(callers.c.address, callers.c["count"]))
        return {row[0]: row[1] for row in rows}


def by_hour(database: Database) -> dict[tuple[int, str], int]:
    merge_pending(database)
    with database.usage.connect() as connection:
        rows = connection.execute(select(hours.c.hour, hours.c.code, hours.c["count"]))
        return {(hour, code): count for hour, code, count in rows}


def test_verdicts_are_counted_by_hour_and_only_valid_ones_are_uses(runner: Runner) -> None:
    usage = Usage(runner.database)
    note(usage)
    note(usage, AT + 5, address="203.0.113.8")
    note(usage, AT + HOUR_MS, code="not_permitted")
    usage.flush()
    note(usage, AT + 1)
    usage.flush()
    assert by_hour(runner.database) == {(500_000, "valid"): 3, (500_001, "not_permitted"): 1}
    with runner.database.usage.connect() as connection:
        use = connection.execute(select(last_used)).one()
        row = connection.execute(select(callers).where(callers.c.address == "203.0.113.7")).one()
    assert (use.at, use.address, use.user_agent) == (AT + 5, "203.0.113.8", "curl/8.5.0 (x)")
    assert use.verifications == 3
    assert (row.product, row.route, row.key_id) == ("curl/8.5.0", "GET /v1", KEY)
    assert (row.first_at, row.last_at, row[-1]) == (AT, AT + HOUR_MS, 3)


def test_heavy_callers_are_kept_among_a_thousand_light_ones(runner: Runner) -> None:
    usages = [Usage(runner.database), Usage(runner.database)]
    heavy = [f"203.0.113.{n}" for n in range(10)]
    for turn in range(20):
        for address in heavy:
            for usage in usages:
                for _ in range(5):
                    note(usage, AT + turn, address=address)
        for n in range(50):
            note(usages[n % 2], AT + turn, address=f"2001:db8::{turn}:{n}")
        for usage in usages:
            usage.flush()
        merge_pending(runner.database)
    counts = kept(runner.database)
    assert len(counts) == MOST_CALLERS
    assert {address: counts[address] >= 200 for address in heavy} == dict.fromkeys(heavy, True)
    assert sum(counts.values()) == 20 * (10 * 2 * 5 + 50)


def test_concurrent_writers_lose_nothing_and_do_not_deadlock(runner: Runner) -> None:
    usages = [Usage(runner.database) for _ in range(4)]

    def run(number: int) -> None:
        for turn in range(10):
            for n in range(40):
                place = (n * (-1) ** number) % 40
                note(usages[number], AT + turn, kid=f"kid{place:09}", address=f"10.0.{number}.1")
            usages[number].flush()
            merge_pending(runner.database)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(run, range(4)))
    with runner.database.usage.connect() as connection:
        counts = connection.scalars(select(hours.c["count"])).all()
    assert counts == [40] * 40


def test_uses_counted_while_a_batch_is_written_are_not_lost(runner: Runner) -> None:
    usage = Usage(runner.database)

    def run(_: int) -> None:
        for n in range(5_000):
            note(usage, AT + n % 7)

    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(run, n) for n in range(4)]
        while not all(future.done() for future in running):
            usage.flush()
    usage.flush()
    assert by_hour(runner.database) == {(500_000, "valid"): 20_000}
    assert usage.lost == 0


@contextmanager
def without(database: Database, table: str) -> Iterator[None]:
    """Remove a table while the block runs."""
    with database.usage.begin() as connection:
        connection.execute(text(f"ALTER TABLE usage.{table} RENAME TO aside"))
    yield
    with database.usage.begin() as connection:
        connection.execute(text(f"ALTER TABLE usage.aside RENAME TO {table}"))


def rows_pending(database: Database) -> int:
    with database.reader.connect() as connection:
        return connection.execute(select(func.count()).select_from(pending)).scalar_one()


def test_a_failed_write_is_retried_and_counted_once(runner: Runner) -> None:
    usage = Usage(runner.database)
    note(usage)
    with without(runner.database, "pending"):
        with pytest.raises(Exception, match="pending"):
            usage.flush()
        note(usage, AT + 3)
    usage.flush()
    usage.flush()
    assert by_hour(runner.database) == {(500_000, "valid"): 2}
    with runner.database.usage.connect() as connection:
        row = connection.execute(select(callers)).one()
    assert (row.first_at, row.last_at, row[-1]) == (AT, AT + 3, 2)


@pytest.mark.parametrize("table", ["callers", "refused", "hours"])
def test_a_merge_that_fails_midway_neither_loses_nor_duplicates_counts(
    runner: Runner, table: str
) -> None:
    usage = Usage(runner.database)
    note(usage)
    usage.note_unknown(AT, "malformed")
    usage.flush()
    with without(runner.database, table):
        with pytest.raises(Exception, match=table):
            merge_pending(runner.database)
        note(usage, AT + 3)
        usage.flush()
        usage.catch_up()
        assert rows_pending(runner.database) == 2
    assert by_hour(runner.database) == {(500_000, "valid"): 2}
    assert kept(runner.database) == {"203.0.113.7": 2}
    with runner.database.usage.connect() as connection:
        assert connection.execute(select(refused)).one() == (500_000, "malformed", 1)
        assert connection.execute(select(last_used.c.verifications)).scalar_one() == 2


def test_a_flush_writes_one_row_and_a_merge_deletes_it(
    runner: Runner,
) -> None:
    usage = Usage(runner.database)
    for n in range(3_000):
        note(usage, kid=f"kid{n:09}", address=f"2001:db8::{n % 7}")
    usage.flush()
    assert rows_pending(runner.database) == 1
    runner.database.clock = lambda: clock
    clock = wall_clock()
    merge_pending(runner.database, MERGE_MS)
    assert rows_pending(runner.database) == 1
    clock += MERGE_MS
    merge_pending(runner.database, MERGE_MS)
    assert rows_pending(runner.database) == 0
    assert by_hour(runner.database) == {(500_000, "valid"): 1}
    with runner.database.usage.connect() as connection:
        assert len(connection.execute(select(hours)).all()) == 3_000


_KILLED = """
import os, signal, sys
from pathlib import Path
from wardkey.deployment import open_deployment
from wardkey.config import load_config
from wardkey.verify import pending
from wardkey.verify.usage import Usage

options = {"data_dir": Path(sys.argv[1]), "database_url": sys.argv[2]}
with open_deployment(load_config({}, options)) as runner:
    usage = Usage(runner.database)
    for n in range(500):
        at, address = int(sys.argv[3]) + n, f"10.0.0.{n % 40}"
        usage.note("7QdRk2mVx9Ta", "key_1", "valid", at, address, "", "")
        if n % 100 == 99:
            usage.flush()
    if sys.argv[4] == "merging":
        with runner.database.counting() as connection:
            ids = connection.execute(pending._IDS).scalars().all()
            pending._merge_rows(connection, pending._STATEMENTS[runner.database.kind], ids)
            os.kill(os.getpid(), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("when", ["flushed", "merging"])
def test_counts_flushed_by_a_killed_process_are_merged_exactly_by_another(
    config: Config, runner: Runner, storage_url: str, when: str
) -> None:
    killed = subprocess.run(
        [sys.executable, "-c", _KILLED, str(config.data_dir), storage_url, str(AT), when],
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    assert rows_pending(runner.database) == 5
    assert by_hour(runner.database) == {(500_000, "valid"): 500}
    assert sorted(kept(runner.database).values()) == [12] * 20 + [13] * 20
    assert rows_pending(runner.database) == 0


def test_concurrent_merges_count_each_row_once(config: Config, runner: Runner) -> None:
    usage = Usage(runner.database)
    for turn in range(30):
        note(usage, AT + turn)
        usage.flush()
    with ExitStack() as opened:
        others = [opened.enter_context(open_deployment(config)).database for _ in range(4)]
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(merge_pending, others))
    assert by_hour(runner.database) == {(500_000, "valid"): 30}
    assert kept(runner.database) == {"203.0.113.7": 30}


def test_rows_beyond_the_limit_stay_in_memory_until_a_merge(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usage_module, "_MOST_ROWS", 3)
    usage = Usage(runner.database)
    with without(runner.database, "hours"):
        for _ in range(3):
            note(usage)
            usage.flush()
        note(usage)
        usage.flush()
        note(usage)
        with pytest.raises(StorageBusy):
            usage.flush()
        assert rows_pending(runner.database) == 4
    merge_pending(runner.database)
    usage.flush()
    assert by_hour(runner.database) == {(500_000, "valid"): 5}


def test_evicted_secrets_keep_their_first_use_and_their_key(runner: Runner) -> None:
    usage = Usage(runner.database)
    for n in range(MOST_CALLERS + 20):
        note(usage, AT + n, address=f"10.0.0.{n}")
    note(usage, AT, kid="another00000")
    usage.flush()
    merge_pending(runner.database)
    note(usage, AT + 500, address="10.0.0.69")
    note(usage, AT + 501, address="10.0.1.1")
    usage.flush()
    counts = kept(runner.database)
    with runner.database.usage.connect() as connection:
        rows = connection.execute(select(callers).where(callers.c.kid == KID)).all()
    assert len(rows) == MOST_CALLERS
    assert {row.key_id for row in rows} == {KEY}
    assert sum(row[-1] for row in rows) == MOST_CALLERS + 22
    (last,) = [row for row in rows if row.address == "10.0.0.69"]
    assert (last.first_at, last.last_at) == (AT + 69, AT + 500)
    assert {"10.0.1.1", "203.0.113.7"} <= set(counts)


def test_memory_is_bounded_and_the_excess_is_counted_as_lost(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usage_module, "_MOST_PENDING", 10)
    usage = Usage(runner.database)
    for n in range(2_000):
        note(usage, address=f"2001:db8::{n:x}")
    note(usage, address="2001:db8::0")
    usage.flush()
    assert usage.lost == 1_990
    assert by_hour(runner.database) == {(500_000, "valid"): 11}


def test_caller_details_are_truncated_and_contain_no_secret(runner: Runner) -> None:
    usage = Usage(runner.database)
    hostile = "/v1/sk_live_7QdRk2mVx9Ta_x/" + "é\x00\ud800" * 200 + "?key=1"
    note(usage, address="9" * 500, user_agent="\x00" * 9_000, route=f"GET {hostile}")
    note(usage, user_agent="")
    usage.flush()
    merge_pending(runner.database)
    with runner.database.usage.connect() as connection:
        rows = connection.execute(select(callers).order_by(callers.c.address)).all()
    assert [len(row.route) for row in rows] == [7, 100]
    assert rows[1].route.startswith("GET /v1/…/é��")
    assert (len(rows[1].address), rows[1].product) == (64, "�" * 64)
    assert rows[0].product == ""


def test_an_imported_key_in_a_route_or_a_user_agent_is_never_stored(
    runner: Runner, owner: Principal
) -> None:
    usage = Usage(runner.database)
    text = "beta_" + "0123456789abcdef" * 2
    # Before the prefix is registered, after it, and truncated.
    note(usage, address="10.0.0.1", user_agent=f"curl/8 {text}", route=f"GET /rpc/{text}/eth")
    runner.write(imports.register_prefix, owner, "beta_")
    note(usage, address="10.0.0.2", user_agent=text, route=f"GET /x;key={text}")
    usage.flush()
    note(usage, address="10.0.0.3", route="GET /" + "a" * 80 + f"/{text}")
    usage.flush()
    merge_pending(runner.database)
    with runner.database.usage.connect() as connection:
        rows = connection.execute(select(callers).order_by(callers.c.address)).all()
        agents = connection.execute(select(last_used.c.user_agent)).scalars().all()
    assert [row.route for row in rows] == ["GET /rpc/…/eth", "GET /x;key=…", f"GET /{'a' * 80}/…"]
    assert not any("beta_0123" in str(row) for row in (*rows, *agents))


def test_hours_and_callers_are_kept_for_90_days(runner: Runner) -> None:
    usage = Usage(runner.database)
    now = AT + KEPT_USAGE_MS
    note(usage, AT - HOUR_MS, address="10.0.0.1")
    note(usage, AT, address="10.0.0.2")
    note(usage, now, address="10.0.0.3")
    usage.flush()
    merge_pending(runner.database)
    clean_up_usage(replace(runner.database, clock=lambda: now))
    assert set(by_hour(runner.database)) == {(500_000, "valid"), (now // HOUR_MS, "valid")}
    assert set(kept(runner.database)) == {"10.0.0.2", "10.0.0.3"}


def test_a_use_counted_late_does_not_hide_a_newer_one(runner: Runner) -> None:
    usage = Usage(runner.database)
    note(usage, AT + 9)
    note(usage, AT)
    usage.flush()
    merge_pending(runner.database)
    with runner.database.usage.connect() as connection:
        assert connection.execute(select(last_used.c.at)).scalar_one() == AT + 9
