from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import httpx2 as httpx
import pytest

from tests.support.server import PASSWORD, Server
from wardkey.domain.broker_acl import find_exception, find_loose_wildcard
from wardkey.domain.rule_set import RuleSet
from wardkey.domain.rule_specs import PRESETS, PresetName, clean_rule

RULES = "/v2/acl/rules"
EVERYONE = {"kind": "everyone"}


@pytest.fixture
def owner(server: Server) -> Iterator[httpx.Client]:
    """Sign in as the owner, in an environment without rules."""
    with server.owner() as client:
        for environment in ("test", "live"):
            there = {"Wardkey-Environment": environment}
            assert client.put(RULES, json={"rules": []}, headers=there).status_code == 200
        yield client


def rule(topic_filter: str = "a", effect: str = "allow", priority: int = 10, **more: object) -> Any:  # noqa: ANN401 - JSON
    return {
        "priority": priority,
        "subject": EVERYONE,
        "filter": topic_filter,
        "action": "both",
        "effect": effect,
        **more,
    }


def made(client: httpx.Client, *args: Any, **more: Any) -> Any:  # noqa: ANN401 - JSON
    answer = client.post(RULES, json=rule(*args, **more))
    assert answer.status_code == 201, answer.text
    # `sessions` is the effect of this write on live sessions, not a field of the rule.
    return {name: value for name, value in answer.json().items() if name != "sessions"}


def listed(client: httpx.Client) -> Any:  # noqa: ANN401 - JSON
    return client.get(RULES).json()["rules"]


def simulate(client: httpx.Client, topic: str, action: str = "publish", **more: Any) -> Any:  # noqa: ANN401 - JSON
    who = {"kind": "client", "username": "agent-01", **more.pop("who", {})}
    answer = client.post(
        "/v2/acl/simulate", json={"who": who, "action": action, "topic": topic, **more}
    )
    assert answer.status_code == 200, answer.text
    return answer.json()


def events(client: httpx.Client) -> list[tuple[str, str]]:
    rows = client.get("/v2/audit-events").json()["events"]
    return [
        (event["action"], event["target_id"]) for event in rows if event["action"].startswith("acl")
    ]


# --- life cycle of a rule ------------------------------------------------------------------


def test_a_rule_can_be_created_read_changed_and_deleted_with_an_audit_event_each(
    owner: httpx.Client,
) -> None:
    subject = {"kind": "username", "value": "agent-*"}
    new = made(owner, "agents/{username}/#", subject=subject, description="An agent's own")
    where = f"{RULES}/{new['id']}"
    assert new["id"].startswith("acl_")
    assert owner.get(where).json() == new == listed(owner)[0]
    changed = owner.patch(where, json={"effect": "deny", "priority": 5})
    assert changed.status_code == 200, changed.text
    expected = {**new, "effect": "deny", "priority": 5}
    assert changed.json() | {"updated_at": ""} == {**expected, "updated_at": "", "sessions": None}
    assert owner.patch(where, json={}).json() == changed.json()
    assert owner.delete(where).json() == {"id": where.rpartition("/")[2], "sessions": None}
    assert owner.get(where).status_code == 404
    assert listed(owner) == []
    expected_events = [f"acl_rule.{done}" for done in ("deleted", "updated", "created")]
    assert [done for done, target in events(owner) if target == new["id"]] == expected_events


def test_rules_are_listed_by_priority_then_age(owner: httpx.Client) -> None:
    ids = [made(owner, priority=priority)["id"] for priority in (20, 10, 10)]
    assert [item["id"] for item in listed(owner)] == [ids[1], ids[2], ids[0]]


def test_replacing_all_rules_keeps_their_order(owner: httpx.Client) -> None:
    before = made(owner)
    rules = [rule(f"t/{n}", priority=n // 100) for n in range(1_000)]
    answer = owner.put(RULES, json={"rules": rules})
    assert answer.status_code == 200, answer.text
    assert [item["filter"] for item in answer.json()["rules"]] == [item["filter"] for item in rules]
    assert listed(owner) == answer.json()["rules"]
    assert owner.get(f"{RULES}/{before['id']}").status_code == 404
    assert events(owner)[0] == ("acl_rules.replaced", "live")
    answer = owner.post(RULES, json=rule())
    assert (answer.status_code, answer.json()["code"]) == (409, "too_many_acl_rules")


def test_one_bad_rule_among_many_replaces_nothing(owner: httpx.Client) -> None:
    made(owner, "a/b")
    before = listed(owner)
    answer = owner.put(RULES, json={"rules": [rule(), rule("b/#/c")]})
    assert answer.json()["errors"][0]["field"] == "rules.1.filter"
    answer = owner.put(RULES, json={"rules": [rule()] * 1_001})
    assert (answer.status_code, answer.json()["code"]) == (409, "too_many_acl_rules")
    assert listed(owner) == before


# --- permissions ---------------------------------------------------------------------------


def test_403_viewers_can_read_and_simulate_rules_but_not_change_them(
    server: Server, owner: httpx.Client
) -> None:
    where = f"{RULES}/{made(owner)['id']}"
    with server.person("viewer") as viewer:
        assert [item["filter"] for item in listed(viewer)] == ["a"]
        assert simulate(viewer, "a")["allowed"]
        for answer in (
            viewer.post(RULES, json=rule()),
            viewer.put(RULES, json={"rules": []}),
            viewer.patch(where, json={"effect": "deny"}),
            viewer.delete(where),
            viewer.post("/v2/acl/presets", json={"preset": "chat", "replace": True}),
        ):
            assert (answer.status_code, answer.json()["code"]) == (403, "not_permitted")
            assert "acl:write" in answer.headers["www-authenticate"]
    assert len(listed(owner)) == 1


def test_403_a_publishable_key_cannot_read_rules(server: Server, owner: httpx.Client) -> None:
    page = owner.post("/v2/keys", json={"name": "live-acl-page", "type": "publishable"}).json()
    with server.client(page["secret"]) as key:
        answer = key.get(RULES)
    assert (answer.status_code, answer.json()["code"]) == (403, "secret_key_required")


def test_live_and_test_have_separate_rules(server: Server, owner: httpx.Client) -> None:
    new = made(owner)
    with server.owner(Wardkey_Environment="test") as tester:
        assert listed(tester) == []
        assert not simulate(tester, "a")["allowed"]
        where = f"{RULES}/{new['id']}"
        for answer in (
            tester.get(where),
            tester.patch(where, json={"effect": "deny"}),
            tester.delete(where),
        ):
            assert (answer.status_code, answer.json()["code"]) == (404, "acl_rule_not_found")
        assert tester.put(RULES, json={"rules": [rule("b")]}).status_code == 200
        assert [item["filter"] for item in listed(tester)] == ["b"]
    assert listed(owner) == [new]


def test_a_rule_only_accepts_a_client_of_its_own_environment(
    server: Server, owner: httpx.Client
) -> None:
    with server.owner(Wardkey_Environment="test") as tester:
        there = tester.post("/v2/clients", json={"username": "acl-there"}).json()
    here = owner.post("/v2/clients", json={"username": "acl-here"}).json()
    ids = [body.get("id") or body["client"]["id"] for body in (here, there)]
    subjects = [{"kind": "client", "value": client_id} for client_id in (*ids, "cli_nobody")]
    kept = made(owner, subject=subjects[0])
    for subject in subjects[1:]:
        for answer, field in (
            (owner.post(RULES, json=rule(subject=subject)), "subject.value"),
            (owner.patch(f"{RULES}/{kept['id']}", json={"subject": subject}), "subject.value"),
            (owner.put(RULES, json={"rules": [rule(subject=subject)]}), "rules.0.subject.value"),
        ):
            assert (answer.status_code, answer.json()["code"]) == (400, "invalid_acl_subject")
            assert answer.json()["errors"][0]["field"] == field
    assert listed(owner) == [kept]


# --- bad input -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "code", "field", "expected"),
    [
        ({"filter": ""}, "invalid_topic_filter", "filter", "empty"),
        ({"filter": "a/#/b"}, "invalid_topic_filter", "filter", "# at position 3"),
        ({"filter": "a/b+"}, "invalid_topic_filter", "filter", "+ at position 4"),
        ({"filter": "a b"}, "invalid_topic_filter", "filter", "U+0020 at position 2"),
        ({"filter": "a/*"}, "invalid_topic_filter", "filter", "U+002A at position 3"),
        ({"filter": "$SYS/#"}, "invalid_topic_filter", "filter", "starts with $"),
        ({"filter": "a/{user}"}, "invalid_topic_filter", "filter", "{user} at position 3"),
        ({"filter": "{org}/{"}, "invalid_topic_filter", "filter", "{ at position 7"),
        ({"filter": "a" * 1_025}, "invalid_topic_filter", "filter", "1024 bytes"),
        ({"priority": -1}, "invalid_request", "priority", ""),
        ({"priority": 100_001}, "invalid_request", "priority", ""),
        ({"priority": "1"}, "invalid_request", "priority", ""),
        ({"effect": "maybe"}, "invalid_request", "effect", ""),
        ({"action": "read"}, "invalid_request", "action", ""),
        ({"subject": {"kind": "nobody"}}, "invalid_request", "subject.kind", ""),
        ({"subject": {"kind": "client"}}, "invalid_acl_subject", "subject.value", "by its id"),
        ({"subject": {"kind": "provider", "value": "x"}}, "invalid_acl_subject", "subject.value",
         "by its id"),
        ({"subject": {"kind": "username", "value": "a b"}}, "invalid_acl_subject",
         "subject.value", "1 to 64"),
        ({"subject": {"kind": "everyone", "value": "a"}}, "invalid_acl_subject", "subject.value",
         "no value"),
        ({"description": "x" * 501}, "invalid_text", "description", "shorten"),
        ({"typo": 1}, "invalid_request", "typo", ""),
    ],
)  # fmt: skip
def test_400_an_invalid_rule_is_reported_with_its_field(
    owner: httpx.Client, fields: dict[str, object], code: str, field: str, expected: str
) -> None:
    kept = made(owner)
    for answer in (
        owner.post(RULES, json={**rule(), **fields}),
        owner.patch(f"{RULES}/{kept['id']}", json=fields),
    ):
        assert (answer.status_code, answer.json()["code"]) == (400, code)
        assert answer.json()["errors"][0]["field"] == field
        assert expected in answer.json()["detail"]
    assert listed(owner) == [kept]


def test_409_an_allow_above_a_deny_is_rejected_and_names_both_rules(
    owner: httpx.Client,
) -> None:
    allow = made(owner, "a/b", priority=10)
    made(owner, "#", priority=30)
    answer = owner.post(RULES, json=rule("a/#", "deny", 20))
    assert (answer.status_code, answer.json()["code"]) == (409, "acl_exception_above_denial")
    assert allow["id"] in answer.json()["detail"]
    assert "deny a/#" in answer.json()["detail"]
    made(owner, "a/#", "deny", 5)
    # A final deny-all only repeats the default.
    made(owner, "#", "deny", 100_000)


def test_409_a_plus_that_the_broker_reads_as_a_hash_is_rejected(owner: httpx.Client) -> None:
    everything = made(owner, "a/#")
    for topic_filter in ("a", "a/+", "a/b/c"):
        made(owner, topic_filter)
    answer = owner.delete(f"{RULES}/{everything['id']}")
    assert (answer.status_code, answer.json()["code"]) == (409, "acl_loose_wildcard")
    assert "a/#" in answer.json()["detail"]
    assert len(listed(owner)) == 4


# --- presets -------------------------------------------------------------------------------


def test_a_preset_applies_once_and_replaces_other_rules_only_on_request(
    owner: httpx.Client,
) -> None:
    for preset in owner.get("/v2/acl/presets").json()["presets"]:
        body = {"preset": preset["name"]}
        owner.put(RULES, json={"rules": []})
        answer = owner.post("/v2/acl/presets", json=body)
        assert answer.status_code == 200, answer.text
        kept = [{name: item[name] for name in preset["rules"][0]} for item in listed(owner)]
        assert kept == preset["rules"]
        answer = owner.post("/v2/acl/presets", json=body)
        assert (answer.status_code, answer.json()["code"]) == (409, "acl_rules_exist")
        answer = owner.post("/v2/acl/presets", json={**body, "replace": True})
        assert answer.status_code == 200
        assert len(listed(owner)) == len(preset["rules"])


ME, OTHER = {"username": "agent-01"}, {"username": "agent-02"}
PAGE = {"kind": "publishable_key", "username": ""}


@pytest.mark.parametrize(
    ("preset", "who", "action", "topic", "allowed"),
    [
        ("allow-all", ME, "subscribe", "#", True),
        ("allow-all", PAGE, "publish", "a", False),
        ("notifications", ME, "subscribe", "notifications/agent-01/#", True),
        ("notifications", ME, "subscribe", "notifications/all/news", True),
        ("notifications", OTHER, "subscribe", "notifications/agent-01/#", False),
        ("notifications", ME, "publish", "notifications/agent-01/x", False),
        ("notifications", {"username": "notifier-1"}, "publish", "notifications/all/x", True),
        ("agent-pipelines", ME, "publish", "agents/agent-01/state", True),
        ("agent-pipelines", OTHER, "publish", "agents/agent-01/state", False),
        ("agent-pipelines", OTHER, "subscribe", "agents/+/state", True),
        ("agent-pipelines", OTHER, "subscribe", "agents/agent-01/tasks", False),
        ("agent-pipelines", ME, "publish", "pipelines/p/1", True),
        ("agent-pipelines", PAGE, "publish", "agents/agent-01/state", True),
        ("agent-pipelines", PAGE, "publish", "agents/agent-01/tasks", False),
        ("chat", ME, "publish", "rooms/r/messages/agent-01", True),
        ("chat", ME, "publish", "rooms/r/messages/agent-02", False),
        ("chat", OTHER, "subscribe", "rooms/#", True),
        ("chat", OTHER, "publish", "inbox/agent-01/agent-02", True),
        ("chat", OTHER, "subscribe", "inbox/agent-01/#", False),
        ("chat", ME, "subscribe", "inbox/agent-01/#", True),
    ],
)
def test_a_preset_allows_what_it_promises(
    owner: httpx.Client,
    preset: str,
    who: dict[str, str],
    action: str,
    topic: str,
    allowed: bool,  # noqa: FBT001 - a parameter
) -> None:
    rules = next(
        row["rules"]
        for row in owner.get("/v2/acl/presets").json()["presets"]
        if row["name"] == preset
    )
    assert simulate(owner, topic, action, who=who, rules=rules)["allowed"] == allowed


@pytest.mark.parametrize("name", PresetName)
def test_the_broker_can_hold_every_preset(name: PresetName) -> None:
    specs = PRESETS[name].rules
    rules = RuleSet(clean_rule(spec).rule(f"acl_{n}") for n, spec in enumerate(specs)).rules
    assert find_exception(rules) is None
    assert find_loose_wildcard(rules) is None
    assert PRESETS[name].says.endswith(".")


# --- the simulator -------------------------------------------------------------------------


def test_the_simulator_names_the_deciding_saved_rule(owner: httpx.Client) -> None:
    allow = made(owner, "agents/{username}/#")
    result = simulate(owner, "agents/agent-01/state")
    assert result["allowed"] is True
    assert (result["rule"]["id"], result["rule"]["position"]) == (allow["id"], None)
    assert allow["id"] in result["sentence"]
    assert result["sentence"].startswith("agent-01 can publish to agents/agent-01/state: ")
    result = simulate(owner, "agents/agent-02/state")
    assert (result["allowed"], result["rule"]) == (False, None)
    assert "no rule matches" in result["sentence"]
    deny = made(owner, "agents/+/secret", "deny", 1)
    result = simulate(owner, "agents/agent-01/secret", "subscribe")
    assert (result["allowed"], result["rule"]["id"]) == (False, deny["id"])


def test_the_simulator_evaluates_unsaved_rules(owner: httpx.Client) -> None:
    made(owner, "#", "deny")
    rules = [rule("b"), rule("a", action="subscribe"), rule("a", priority=20)]
    result = simulate(owner, "a", rules=rules)
    assert (result["allowed"], result["rule"]["id"], result["rule"]["position"]) == (True, None, 2)
    assert not simulate(owner, "a", rules=[])["allowed"]
    assert not simulate(owner, "a")["allowed"]
    assert [item["effect"] for item in listed(owner)] == ["deny"]


@pytest.mark.parametrize(
    ("subject", "who", "allowed"),
    [
        ({"kind": "client", "value": "cli_1"}, {"id": "cli_1"}, True),
        ({"kind": "client", "value": "cli_1"}, {"id": ""}, False),
        ({"kind": "username", "value": "agent-*"}, {}, True),
        ({"kind": "username", "value": "bot-*"}, {}, False),
        ({"kind": "provider", "value": "idp_1"}, {"kind": "grant", "id": "idp_1"}, True),
        ({"kind": "provider", "value": "idp_1"}, {"kind": "client"}, False),
        ({"kind": "publishable"}, {"kind": "publishable_key"}, True),
        ({"kind": "publishable"}, {"kind": "secret_key"}, False),
        ({"kind": "everyone"}, {"kind": "publishable_key"}, False),
        ({"kind": "everyone"}, {"kind": "secret_key"}, True),
    ],
)
def test_the_simulator_evaluates_any_subject(
    owner: httpx.Client,
    subject: dict[str, str],
    who: dict[str, str],
    allowed: bool,  # noqa: FBT001 - a parameter
) -> None:
    client = owner.post("/v2/clients", json={"username": f"acl-{uuid.uuid4().hex[:8]}"}).json()
    client_id = client.get("id") or client["client"]["id"]
    named = [{**one} for one in (subject, who)]
    for one in named:
        for name, value in one.items():
            one[name] = client_id if value == "cli_1" else value
    result = simulate(owner, "a", who=named[1], rules=[rule(subject=named[0])])
    assert result["allowed"] == allowed


def test_the_simulator_reads_a_clients_username_from_its_record(
    owner: httpx.Client,
) -> None:
    name = f"acl-{uuid.uuid4().hex[:8]}"
    client = owner.post("/v2/clients", json={"username": name}).json()["client"]
    rules = [rule("a/{username}")]
    for sent in ({}, {"username": "agent-01"}):
        who = {"kind": "client", "id": client["id"], **sent}
        result = simulate(owner, f"a/{name}", who=who, rules=rules)
        assert result["allowed"]
        assert result["sentence"].startswith(f"{name} can publish")
        assert not simulate(owner, "a/agent-01", who=who, rules=rules)["allowed"]


def test_404_the_simulator_only_finds_clients_of_its_own_scope(
    server: Server, owner: httpx.Client
) -> None:
    made = owner.post("/v2/clients", json={"username": f"acl-{uuid.uuid4().hex[:8]}"})
    theirs = server.cli_here("org", "create", "Umbrella", "--owner", "admin@umbrella.example")
    token = theirs.output.partition("/setup/")[2].split()[0]
    body = {"token": token, "password": PASSWORD}
    with server.client() as anonymous:
        stranger = server.client(anonymous.post("/v2/setup", json=body).json()["token"])
    test = {"Wardkey-Environment": "test"}
    for asking, client_id, there in (
        (owner, "cli_nobody", {}),
        (owner, made.json()["client"]["id"], test),
        (stranger, made.json()["client"]["id"], {}),
    ):
        who = {"kind": "client", "id": client_id}
        question = {"who": who, "action": "publish", "topic": "a"}
        answer = asking.post("/v2/acl/simulate", json=question, headers=there)
        assert (answer.status_code, answer.json()["code"]) == (404, "client_not_found")
    stranger.close()


def test_a_claim_that_would_widen_a_rule_allows_nothing(owner: httpx.Client) -> None:
    rules = [rule("teams/{claim.team}/#")]
    for value, allowed in (("red", True), ("+", False), ("#", False), ("red/x", False)):
        who = {"kind": "grant", "id": "idp_1", "claims": {"team": value}}
        result = simulate(owner, "teams/red/x", "subscribe", who=who, rules=rules)
        assert result["allowed"] == allowed, value


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"topic": "a/+"}, "invalid_topic"),
        ({"topic": "$SYS/a"}, "invalid_topic"),
        ({"topic": "a/#/b", "action": "subscribe"}, "invalid_topic_filter"),
        ({"action": "both"}, "invalid_request"),
        ({"who": {"kind": "nobody"}}, "invalid_request"),
        ({"rules": [rule("a+")]}, "invalid_topic_filter"),
    ],
)
def test_400_a_meaningless_simulation_is_rejected(
    owner: httpx.Client, fields: dict[str, object], code: str
) -> None:
    body = {"who": {"kind": "client"}, "action": "publish", "topic": "a", **fields}
    answer = owner.post("/v2/acl/simulate", json=body)
    assert (answer.status_code, answer.json()["code"]) == (400, code)
