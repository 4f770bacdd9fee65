"""Keys and tenants: who is let in, and what they may ask for."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from kairos.errors import InputError
from kairos.router.cli import main
from kairos.router.config.settings import RouterConfig, Scheduling, Security, Workers
from kairos.router.edge.errors import RequestError
from kairos.router.edge.keys import Keyring, hash_key, new_key
from kairos.router.edge.tenant import Tenant
from kairos.router.request.outcome import Outcome
from kairos.router.workers.endpoint import WorkerEndpoint
from kairos.slo import Slo, SloClasses, SloRequest

WORKERS = Workers(
    prefill=(WorkerEndpoint("prefill", "http://a:1"),),
    decode=(WorkerEndpoint("decode", "http://b:1"),),
)
CLASSES = SloClasses(
    Slo(2000, 50), {"fast": Slo(500, 30, "fast"), "batch": Slo(60_000, 500, "batch")}
)


def config(folder: Path, keys: str | None = None, admin: str | None = None) -> RouterConfig:
    files = {}
    for name, text in (("keys_file", keys), ("admin_key_file", admin)):
        if text is not None:
            (folder / name).write_text(text)
            files[name] = folder / name
    classes = tuple(CLASSES.named.values())
    return RouterConfig(
        workers=WORKERS, security=Security(**files), scheduling=Scheduling(slo_class=classes)
    )


def bearer(*keys: str) -> CIMultiDict:
    return CIMultiDict([("Authorization", f"Bearer {key}") for key in keys])


def test_without_a_keys_file_everyone_is_one_tenant(tmp_path: Path) -> None:
    ring = Keyring(config(tmp_path))
    assert ring.authenticate(bearer()).name == "anonymous"
    assert [tenant.name for tenant in ring.tenants] == ["anonymous"]


def test_a_key_names_its_tenant_and_nothing_else_is_let_in(tmp_path: Path) -> None:
    (one, hash_one), (two, hash_two), (old, hash_old) = new_key(), new_key(), new_key()
    ring = Keyring(
        config(
            tmp_path,
            f"tenants:\n  a: {{keys: ['{hash_one}', '{hash_old}'], weight: 3}}\n"
            f"  b: {{keys: ['{hash_two}']}}\n",
        )
    )
    assert ring.authenticate(bearer(one)).name == "a"
    assert ring.authenticate(bearer(old)).weight == 3
    assert ring.authenticate(bearer(two)).name == "b"
    assert ring.authenticate(CIMultiDict({"authorization": f"bearer {two}"})).name == "b"
    for headers in (
        bearer(),
        bearer(one, one),
        bearer(one + "x"),
        bearer(hash_one),
        bearer("\udcff"),
        bearer("x" * 10_000),
        CIMultiDict({"Authorization": one}),
        CIMultiDict({"Authorization": f"Basic {one}"}),
        CIMultiDict({"Authorization": "Bearer "}),
    ):
        with pytest.raises(RequestError) as caught:
            ring.authenticate(headers)
        assert (caught.value.status, caught.value.outcome) == (401, Outcome.UNAUTHORIZED)
        assert one not in caught.value.message


def test_the_admin_key_is_a_key_apart(tmp_path: Path) -> None:
    (user, user_hash), (admin, admin_hash) = new_key(), new_key()
    tenants = f"tenants: {{a: {{keys: ['{user_hash}']}}}}"
    ring = Keyring(config(tmp_path, tenants, f"# rotated in May\n{admin_hash}\n"))
    ring.authorize_admin(bearer(admin))
    ring.authorize_metrics(bearer(admin))
    without = Keyring(config(tmp_path, tenants))
    for headers in (bearer(), bearer(user)):
        with pytest.raises(RequestError, match="admin key"):
            without.authorize_metrics(headers)
    for headers in (bearer(user), bearer(), bearer(admin, admin)):
        for authorize in (ring.authorize_admin, ring.authorize_metrics):
            with pytest.raises(RequestError, match=r"key|header"):
                authorize(headers)
    with pytest.raises(RequestError):
        ring.authenticate(bearer(admin))
    with pytest.raises(InputError, match="the admin key is also a tenant's"):
        Keyring(config(tmp_path, tenants, user_hash))


def test_without_an_admin_key_servers_cannot_be_changed(tmp_path: Path) -> None:
    ring = Keyring(config(tmp_path))
    ring.authorize_admin(bearer(), changes=False)
    ring.authorize_metrics(bearer())
    with pytest.raises(RequestError) as caught:
        ring.authorize_admin(bearer())
    assert caught.value.status == 403
    key, hashed = new_key()
    ring = Keyring(config(tmp_path, f"tenants: {{a: {{keys: ['{hashed}']}}}}"))
    for headers in (bearer(key), bearer()):
        with pytest.raises(RequestError):
            ring.authorize_admin(headers, changes=False)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("tenants: {}", "no tenant has a key"),
        ("tenant: {}", "unknown field 'tenant'; known are classes, tenants"),
        ("tenants: {a: {}}", "tenants.a.keys: it must be a list of hashes"),
        ("tenants: {a: {keys: [kr-secret]}}", "tenants.a.keys: a value is not sha256:"),
        ("tenants: {a: {keys: [H], weight: 0}}", "tenants.a.weight: 0 is not allowed"),
        ("tenants: {a: {keys: [H], wait: 1}}", "tenants.a.wait: unknown field"),
        ("tenants: {a: {keys: [H], classes: [x]}}", "SLO class: 'x' is not one of default"),
        ("tenants: {a: {keys: [H], classes: x}}", "tenants.a.classes: 'x' is not a list"),
        ("tenants: {a: {keys: [H], classes: [fast]}}", "default_class: 'default' is not among"),
        ("tenants: {a: {keys: [H], min_ttft_ms: 9, max_ttft_ms: 8}}", "9 is above max_ttft_ms"),
        ("tenants: {a: {keys: [H]}, b: {keys: [H]}}", "tenants.b.keys: a key is used twice"),
        ("tenants: {'a b': {keys: [H]}}", "'a b' is not allowed"),
        ("tenants: {anonymous: {keys: [H]}}", "not 'anonymous'"),
        ("classes: {x: {ttft_ms: 1}}\ntenants: {a: {keys: [H]}}", "needs ttft_ms and tpot_ms"),
        ("classes: {fast: {ttft_ms: 1, tpot_ms: 1}}\ntenants: {a: {keys: [H]}}", "defines it too"),
    ],
)
def test_a_bad_file_says_where_and_never_shows_a_key(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(InputError, match="--keys-file: ") as caught:
        Keyring(config(tmp_path, text.replace("H", f"'{hash_key('k')}'")))
    assert says in str(caught.value)
    assert "kr-secret" not in str(caught.value)


def test_reload_takes_all_of_a_good_file_and_nothing_of_a_bad_one(tmp_path: Path) -> None:
    (old, old_hash), (new, new_hash) = new_key(), new_key()
    setting = config(tmp_path, f"tenants: {{a: {{keys: ['{old_hash}']}}}}")
    ring = Keyring(setting)
    path = setting.security.keys_file
    path.write_text(f"tenants: {{a: {{keys: ['{new_hash}']}}, b: {{keys: [broken]}}}}")
    assert "tenants.b.keys" in ring.reload()
    assert ring.authenticate(bearer(old)).name == "a"
    path.write_text(
        f"classes: {{slow: {{ttft_ms: 9000, tpot_ms: 90}}}}\n"
        f"tenants: {{a: {{keys: ['{new_hash}'], default_class: slow}}}}"
    )
    assert ring.reload() is None
    assert ring.authenticate(bearer(new)).applied_slo(SloRequest()) == Slo(9000, 90, "slow")
    with pytest.raises(RequestError):
        ring.authenticate(bearer(old))
    path.unlink()
    assert "no such file" in ring.reload()
    assert ring.authenticate(bearer(new)).name == "a"


def test_keys_for_the_servers_are_one_line(tmp_path: Path) -> None:
    path = tmp_path / "engine"
    path.write_text("secret-of-engines\n")
    ring = Keyring(RouterConfig(workers=WORKERS, security=Security(engine_key_file=path)))
    secret = {"authorization": "Bearer secret-of-engines"}
    assert ring.engine_headers() == ring.admin_headers() == secret
    for text in ("", "a\nb\n", "ü"):
        path.write_text(text)
        with pytest.raises(InputError, match="--engine-key-file"):
            Keyring(RouterConfig(workers=WORKERS, security=Security(engine_key_file=path)))


def test_the_command_makes_keys_and_hashes_them(capsys, monkeypatch) -> None:
    assert main(["key"]) == 0
    key, hashed = (line.split()[1] for line in capsys.readouterr().out.splitlines())
    assert hash_key(key) == hashed
    monkeypatch.setattr("sys.stdin.readline", lambda: f"{key}\n", raising=False)
    assert main(["key", "--stdin"]) == 0
    assert capsys.readouterr().out.strip() == hashed
    monkeypatch.setattr("sys.stdin.readline", lambda: "password1\n", raising=False)
    assert main(["key", "--stdin"]) == 2


def tenant(**settings: object) -> Tenant:
    return Tenant("a", CLASSES, **settings)


def test_a_tenant_cannot_promote_itself() -> None:
    asked = SloRequest(ttft_ms=1, tpot_ms=1)
    assert tenant().applied_slo(asked) == CLASSES.default
    assert tenant(min_ttft_ms=100).applied_slo(asked) == Slo(100, 50)
    assert tenant(may_tighten=True).applied_slo(asked) == Slo(1, 1)
    assert tenant().elapsed_ms(SloRequest(elapsed_ms=5000)) == 0
    assert tenant(trust_elapsed=True).elapsed_ms(SloRequest(elapsed_ms=5000)) == 5000
    with pytest.raises(InputError, match="is not one of batch"):
        tenant(classes=("batch",), default_class="batch").applied_slo(SloRequest(slo_class="fast"))
    with pytest.raises(InputError, match="ttft_ms: 1 is not allowed; this key allows 2000 to more"):
        tenant(out_of_bounds="reject").applied_slo(asked)


def test_a_class_without_objectives_is_the_loosest() -> None:
    asked = SloRequest(ttft_ms=500)
    free = Tenant("a", SloClasses())
    assert free.applied_slo(asked) == Slo()
    assert Tenant("a", SloClasses(), min_ttft_ms=100).applied_slo(asked) == Slo(ttft_ms=500)
    with pytest.raises(InputError, match="this key and its class allow none"):
        Tenant("a", SloClasses(), out_of_bounds="reject").applied_slo(asked)


def test_a_tenant_may_loosen_within_bounds() -> None:
    assert tenant().applied_slo(SloRequest(ttft_ms=9000)) == Slo(9000, 50)
    assert tenant(max_ttft_ms=5000).applied_slo(SloRequest(ttft_ms=9000)) == Slo(5000, 50)
    batch = SloRequest(ttft_ms=9000, slo_class="batch")
    # Its class is looser than what it may ask for: then asking gives the bound.
    assert tenant(max_ttft_ms=5000).applied_slo(batch).ttft_ms == 5000


@given(
    st.none() | st.floats(1, 1e6),
    st.none() | st.floats(0.1, 1e5),
    st.sampled_from([None, "default", "fast", "batch"]),
    st.none() | st.floats(1, 1e4),
)
def test_what_applies_is_never_tighter_than_class_and_bound(ttft, tpot, name, least) -> None:
    applied = tenant(min_ttft_ms=least).applied_slo(SloRequest(ttft, tpot, name))
    base = CLASSES.resolve(SloRequest(slo_class=name))
    assert applied.ttft_ms >= min(base.ttft_ms, base.ttft_ms if least is None else least)
    assert applied.tpot_ms >= base.tpot_ms
    assert applied.slo_class == base.slo_class
