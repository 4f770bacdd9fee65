"""The configuration: what is allowed, and what an error says."""

import socket
from pathlib import Path

import msgspec
import pytest

from kairos.errors import InputError
from kairos.router.cli import main, parse
from kairos.router.config.schema import SettingField, settings_of
from kairos.router.config.settings import Limits, RouterConfig
from kairos.router.edge.tenant import Tenant
from kairos.router.workers.endpoint import WorkerEndpoint, parse_pattern
from kairos.slo import Slo

PAIR = ["--prefill", "http://127.0.0.1:30001", "8998", "--decode", "http://127.0.0.1:30002"]


SETTINGS = [s for group in RouterConfig.groups().values() for s in settings_of(group).values()]


def test_a_pair_is_enough() -> None:
    config = parse(PAIR)
    assert config.workers.prefill == (WorkerEndpoint("prefill", "http://127.0.0.1:30001", 8998),)
    assert config.workers.decode == (WorkerEndpoint("decode", "http://127.0.0.1:30002"),)
    assert config.listen.host == "127.0.0.1"


def test_the_spelling_of_upstreams_routers_is_understood() -> None:
    config = parse([
        "--pd-disaggregation", "--host", "127.0.0.1", "--port", "8000",
        "--prefill", "http://10.0.0.1:30000", "--prefill", "http://10.0.0.2:30000", "none",
        "--decode", "http://10.0.0.3:30000",
    ])  # fmt: skip
    assert [endpoint.bootstrap_port for endpoint in config.workers.prefill] == [None, None]
    assert config.listen.port == 8000


def test_names_of_settings_are_unique_across_sections() -> None:
    assert len({setting.name for setting in SETTINGS}) == len(SETTINGS)


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_every_default_is_allowed(setting: SettingField) -> None:
    assert setting.read(setting.default, setting.flag) == setting.default


@pytest.mark.parametrize("group", [*RouterConfig.groups().values(), Tenant])
def test_every_setting_has_a_help_text(group: type[msgspec.Struct]) -> None:
    fields = {field.name for field in msgspec.structs.fields(group)} - {"name", "offered"}
    assert fields == set(settings_of(group))
    for setting in settings_of(group).values():
        assert setting.help
        assert setting.allowed or setting.read_item or setting.metavar == "FILE"


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ([], "--prefill: no prefill server"),
        (PAIR[:3], "--decode: no decode server"),
        ([*PAIR, "--max-body-mib", "0"], "--max-body-mib: '0' is not allowed; allowed are whole"),
        ([*PAIR, "--max-body-mib", "1.5"], "whole numbers from 1 to 4096"),
        ([*PAIR, "--queue-timeout-s", "nan"], "allowed are 0.01 to 86400 s"),
        ([*PAIR, "--queue-timeout-s", "1e309"], "allowed are 0.01 to 86400 s"),
        ([*PAIR, "--overload-status", "500"], "'500' is not allowed; allowed are 429, 503, 529"),
        ([*PAIR, "--infeasible", "maybe"], "allowed are best_effort, degrade, reject"),
        ([*PAIR, "--slo-class", "fast=1"], "is not NAME=TTFT_MS,TPOT_MS"),
        ([*PAIR, "--slo-class", "a=1,1", "--slo-class", "a=2,2"], "'a' is defined more than once"),
        ([*PAIR, "--decode", "http://127.0.0.1:30001"], "127.0.0.1:30001 is named more than once"),
        (["--prefill", "ftp://a:1", "--decode", "b:1"], "is not an address like"),
        (["--prefill", "http://a", "--decode", "b:1"], "is not an address like"),
        (["--prefill", "http://u:p@a:1", "--decode", "b:1"], "is not an address like"),
        (["--prefill", "http://a:1", "70000", "--decode", "b:1"], "'70000' is not a port"),
        (["--prefill", "http://a:1", "1", "2", "--decode", "b:1"], "URL or URL BOOTSTRAP_PORT"),
        ([*PAIR, "--host", "0.0.0.0"], "--allow-unauthenticated"),
        ([*PAIR, "--host", "router.example"], "--allow-unauthenticated"),
        ([*PAIR, "--keys-file", "/nowhere"], "--keys-file: there is no file '/nowhere'"),
        ([*PAIR, "--tls-cert", __file__], "--tls-cert and --tls-key: give both or neither"),
        ([*PAIR, "--engine-cert", __file__], "--engine-cert and --engine-cert-key"),
        ([*PAIR, "--tls-client-ca", __file__], "--tls-client-ca: needs --tls-cert"),
        ([*PAIR, "--allow-worker", "10.0.0.0/8:*"], "127.0.0.1:30001 is not in --allow-worker"),
        ([*PAIR, "--allow-worker", "10.0.0.0/99:*"], "is not HOST:PORT"),
        ([*PAIR, "--no-such-flag"], "unrecognized arguments: --no-such-flag"),
        ([*PAIR, "--access-log", "a\nb"], "allowed are printable texts"),
    ],
)
def test_bad_input_says_what_where_and_what_is_allowed(argv: list[str], says: str) -> None:
    with pytest.raises(InputError) as caught:
        parse(argv)
    assert says in str(caught.value)


def test_loopback_needs_no_keys_and_anything_else_does(tmp_path: Path) -> None:
    keys = tmp_path / "keys.yaml"
    keys.write_text("")
    for host in ("127.0.0.1", "127.8.9.1", "::1", "localhost"):
        assert parse([*PAIR, "--host", host]).listen.loopback
    for open_door in (["--keys-file", str(keys)], ["--allow-unauthenticated"]):
        assert not parse([*PAIR, "--host", "::", *open_door]).listen.loopback


@pytest.mark.parametrize("suffix", ["yaml", "toml"])
def test_flags_win_over_the_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"router.{suffix}"
    path.write_text({
        "yaml": "listen: {port: 1234}\nlimits:\n  max_headers: 20\n  max_body_mib: 7\n"
        "workers:\n  prefill: [[http://a:1, 2]]\n  decode: ['b:1']\n"
        "scheduling: {slo_class: ['x=100,10']}\n",
        "toml": "listen.port = 1234\n[limits]\nmax_headers = 20\nmax_body_mib = 7\n"
        "[workers]\nprefill = [['http://a:1', 2]]\ndecode = ['b:1']\n"
        "[scheduling]\nslo_class = ['x=100,10']\n",
    }[suffix])  # fmt: skip
    config = parse(["--config", str(path), "--max-headers", "30", "--decode", "http://c:9"])
    assert (config.listen.port, config.limits.max_headers, config.limits.max_body_mib) == (
        1234, 30, 7,
    )  # fmt: skip
    assert config.workers.prefill == (WorkerEndpoint("prefill", "http://a:1", 2),)
    assert config.workers.decode == (WorkerEndpoint("decode", "http://c:9"),)
    assert config.scheduling.classes.named == {"x": Slo(100, 10, "x")}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("listn: {}", "unknown field 'listn'; known are listen, limits"),
        ("listen: {prt: 1}", "listen.prt: unknown field; known are host, port"),
        ("listen: {cors_origin: [x]}", "allowed are * and origins like"),
        ("listen: {port: x}", "listen.port: 'x' is not allowed"),
        ("listen: {port: true}", "listen.port: True is not allowed"),
        ("security: {open_metrics: 'yes'}", "security.open_metrics: 'yes' is not allowed"),
        ("workers: {decode: 'b:1'}", "workers.decode: 'b:1' is not a list"),
        ("workers: {decode: [['b:1', 2]]}", "is not an address like"),
        ("limits: 3", "limits: 3 is not a mapping"),
        ("- a", "is not a mapping"),
        ("limits: {max_headers: 20, max_headers: 30}", "found 'max_headers' a second time"),
        ("a: [", "router.yaml"),
        ("a: !!python/object/apply:os.system ['true']", "could not determine a constructor"),
    ],
)
def test_a_bad_file_says_where(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "router.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match="--config: ") as caught:
        parse([*PAIR, "--config", str(path)])
    assert says in str(caught.value)


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(InputError, match="--max-reading-mib: must hold a body"):
        Limits(max_body_mib=2, max_reading_mib=1)


def test_all_values_that_are_not_allowed_are_named(tmp_path: Path, capsys) -> None:
    path = tmp_path / "router.yaml"
    path.write_text("limits: {max_headers: 1, max_hedders: 2}")
    assert main([*PAIR, "--config", str(path), "--port", "-1", "--retries", "x"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[0] for line in lines] == ["kairos-router"] * 4
    for name, line in zip(
        ("--port", "max_headers", "max_hedders", "--retries"), lines, strict=True
    ):
        assert name in line


FILE_FLAGS = [s.flag for s in SETTINGS if s.metavar == "FILE" and s.default is None]


@pytest.mark.parametrize("flag", ["--config", *FILE_FLAGS])
def test_a_file_that_cannot_be_used_is_named_with_its_flag(
    tmp_path: Path, flag: str, capsys
) -> None:
    for path, says in ((tmp_path / "none", "there is no"), (tmp_path, "cannot be read")):
        assert main([*PAIR, flag, str(path)]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"kairos-router: {flag}: ")
        assert str(path) in error
        assert says in error
        assert "; give " in error
        assert "Errno" not in error


def test_the_process_answers_a_bad_command_line_with_one_line(capsys) -> None:
    assert main(["--port", "x"]) == 2
    assert capsys.readouterr().err == (
        "kairos-router: --port: 'x' is not allowed; allowed are whole numbers from 0 to 65535\n"
    )


CHECK = [*PAIR, "--check", "--port", "0", "--access-log", "off"]


def test_check_reads_the_files_too(tmp_path: Path, capsys) -> None:
    assert main(CHECK) == 0
    keys = tmp_path / "keys.yaml"
    keys.write_text("tenants: {}")
    assert main([*CHECK, "--keys-file", str(keys)]) == 2
    assert "no tenant has a key" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--tls-cert", "FILE", "--tls-key", "FILE"], "give the two files of one certificate"),
        (["--engine-cert", "FILE", "--engine-cert-key", "FILE"], "the two files of one"),
        (["--engine-ca", "FILE"], "holds no CA certificate in PEM"),
        (["--workers-file", "FILE"], "line 2, column 2: "),
        (["--keys-file", "FILE"], "it is not UTF-8 (byte 17); save it as UTF-8"),
        (["--engine-key-file", "FILE"], "it is not UTF-8 (byte 17); save it as UTF-8"),
        (["--admin-key-file", "FILE"], "it is not UTF-8 (byte 17); save it as UTF-8"),
        (["--profile", "FILE"], "FILE"),
        (["--profile", "nope"], "shipped profiles are"),
        (["--tokenizer-path", "FILE"], "is not a tokenizer"),
        (["--access-log", "FILE/log"], "; give a file that this user may write"),
        (["--slo-class", "default=1000,50"], "is set by --ttft-slo-ms and --tpot-slo-ms"),
        (["--host", "203.0.113.9", "--allow-unauthenticated"], "0.0.0.0 for all"),
        (["--host", "no.such.invalid", "--allow-unauthenticated"], "has no address"),
    ],
)
def test_check_refuses_what_a_start_would_refuse(
    flags: list[str], says: str, tmp_path: Path, capsys
) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"prefill: [\nmore: \xff\n" if "key" in flags[0] else b"prefill: [\n]: x\n")
    assert main([*CHECK, *(flag.replace("FILE", str(file)) for flag in flags)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"kairos-router: {flags[0]}") or "--host, --port: " in line
    assert says.replace("FILE", str(file)) in line
    for raw in ("_ssl.c", "Errno", "unicode string", "kairos-ttft"):
        assert raw not in line


def test_check_tells_that_the_port_is_taken(capsys) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main([*CHECK, "--port", port]) == 0
    first, last = capsys.readouterr().out.splitlines()
    assert f"another process listens on 127.0.0.1:{port}" in first
    assert last == "kairos-router: the configuration is good"


def test_the_help_names_every_flag_and_shows_an_example_that_works(capsys) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    for setting in SETTINGS:
        assert setting.flag in text
    assert "kairos-router --prefill http://127.0.0.1:30001 8998" in text


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("10.0.0.1:30000", ["10.0.0.1:30000"], ["10.0.0.1:30001", "10.0.0.11:30000"]),
        ("10.0.0.0/8:30000", ["10.255.0.1:30000"], ["11.0.0.1:30000", "10.0.0.1:1", "a:30000"]),
        ("*.llm.svc:*", ["a.llm.svc:1", "b.c.llm.svc:2"], ["llm.svc:1", "a.llm.svc.evil:1"]),
        ("*:30000", ["a:30000", "[::1]:30000"], ["a:1"]),
        ("[fd00::/8]:30000", ["[fd00::1]:30000"], ["[fe80::1]:30000"]),
        ("HOST:1", ["host:1"], ["host2:1"]),
    ],
)
def test_allowed_servers(pattern: str, yes: list[str], no: list[str]) -> None:
    allow = parse_pattern(pattern, "")
    for key in yes:
        assert allow.matches(WorkerEndpoint("decode", f"http://{key}"))
    for key in no:
        assert not allow.matches(WorkerEndpoint("decode", f"http://{key}"))
