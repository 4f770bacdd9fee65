import pytest
from hypothesis import given
from hypothesis import strategies as st

from kairos.errors import InputError
from kairos.slo import (
    Slo,
    SloClasses,
    SloRequest,
    from_headers,
    from_mapping,
    parse_class,
)

CLASSES = SloClasses(Slo(2000, 50), {"batch": Slo(20_000, 150, "batch")})


@pytest.mark.parametrize(
    ("header", "value", "expected"),
    [
        ("x-kairos-slo-ttft-ms", "500", SloRequest(ttft_ms=500)),
        ("x-slo-ttft-ms", "500.5", SloRequest(ttft_ms=500.5)),
        ("x-llm-d-slo-ttft-ms", "1", SloRequest(ttft_ms=1)),
        ("x-sgl-ttft-slo-ms", "3600000", SloRequest(ttft_ms=3_600_000)),
        ("X-Kairos-SLO-TPOT-ms", "25", SloRequest(tpot_ms=25)),
        ("x-slo-tpot-ms", "0.1", SloRequest(tpot_ms=0.1)),
        ("x-llm-d-slo-tpot-ms", " 30 ", SloRequest(tpot_ms=30)),
        ("x-sgl-tps-slo", "40", SloRequest(tpot_ms=25)),
        ("x-kairos-slo-class", "batch", SloRequest(slo_class="batch")),
    ],
)
def test_every_alias_is_read(header: str, value: str, expected: SloRequest) -> None:
    assert from_headers([("host", "x"), (header, value)]) == expected


@pytest.mark.parametrize("header", ["x-kairos-slo-ttft-ms", "x-sgl-tps-slo", "x-slo-tpot-ms"])
@pytest.mark.parametrize(
    "value",
    [
        "", "0", "-1", "+5", "nan", "inf", "1e3", "1e309", "0x10", "1_000", "1,5", "5 5", "five",
        "٥", "99999999999", "1\r\n2", "null",  # the fifth from the end is an Arabic digit
    ],
)  # fmt: skip
def test_malformed_header_is_refused_with_name_value_and_range(header: str, value: str) -> None:
    with pytest.raises(InputError) as error:
        from_headers([(header, value)])
    message = str(error.value)
    assert header in message
    assert "allowed are" in message
    assert "\r" not in message
    assert "\n" not in message


@pytest.mark.parametrize(
    "names",
    [
        ("x-kairos-slo-ttft-ms", "x-kairos-slo-ttft-ms"),
        ("x-slo-ttft-ms", "x-sgl-ttft-slo-ms"),
        ("x-sgl-tps-slo", "x-slo-tpot-ms"),
    ],
)
def test_two_headers_for_one_objective_are_refused(names: tuple[str, str]) -> None:
    with pytest.raises(InputError, match="another"):
        from_headers([(name, "40") for name in names])


def test_a_repeated_class_header_is_refused() -> None:
    with pytest.raises(InputError, match="more than once"):
        from_headers([("x-kairos-slo-class", "a"), ("x-kairos-slo-class", "a")])


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"ttft_ms": 0}, "body.ttft_ms"),
        ({"ttft_ms": -5}, "body.ttft_ms"),
        ({"ttft_ms": float("nan")}, "body.ttft_ms"),
        ({"tpot_ms": float("inf")}, "body.tpot_ms"),
        ({"tpot_ms": True}, "body.tpot_ms"),
        ({"tpot_ms": [1]}, "body.tpot_ms"),
        ({"tpot_ms": 10**400}, "body.tpot_ms"),
        ({"elapsed_ms": -1}, "body.elapsed_ms"),
        ({"class": "a b"}, "body.class"),
        ({"class": ""}, "body.class"),
        ({"class": 3}, "body.class"),
        ({"deadline": 3}, "deadline"),
        ("fast", "body"),
        ([], "body"),
    ],
)
def test_malformed_body_is_refused_with_the_field(fields: object, named: str) -> None:
    with pytest.raises(InputError, match=named.replace(".", r"\.")):
        from_mapping(fields, "body")


def test_body_fields_are_read() -> None:
    fields = {"ttft_ms": 500, "tpot_ms": "25", "class": "batch", "elapsed_ms": 3}
    assert from_mapping(fields, "body") == SloRequest(500, 25, "batch", 3)


def test_a_request_is_completed_from_its_class() -> None:
    assert CLASSES.resolve(SloRequest()) == Slo(2000, 50, "default")
    assert CLASSES.resolve(SloRequest(slo_class="batch")) == Slo(20_000, 150, "batch")
    assert CLASSES.resolve(SloRequest(tpot_ms=9, slo_class="batch")) == Slo(20_000, 9, "batch")
    assert CLASSES.resolve(SloRequest(slo_class="default")) == Slo(2000, 50, "default")


def test_an_unknown_class_is_refused_with_those_offered() -> None:
    with pytest.raises(InputError, match="'gold' is not one of default, batch"):
        CLASSES.resolve(SloRequest(slo_class="gold"))


def test_over_prefers_the_first_and_keeps_the_longest_elapsed() -> None:
    outer, inner = SloRequest(ttft_ms=1, elapsed_ms=5), SloRequest(2, 3, "a", 9)
    assert outer.over(inner) == SloRequest(1, 3, "a", 9)


def test_class_definition_is_parsed() -> None:
    assert parse_class("interactive=500,25.5", "flag") == Slo(500, 25.5, "interactive")


@pytest.mark.parametrize(
    "text",
    ["", "a", "a=", "a=1", "a=1,", "=1,2", "a=1,2,3", "a=0,1", "a=1,x", "default=1,2", "a b=1,2"],
)
def test_malformed_class_definition_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="flag"):
        parse_class(text, "flag")


@given(st.text(), st.text())
def test_any_header_is_read_or_refused(name: str, value: str) -> None:
    for header in (name, "x-slo-ttft-ms", "x-sgl-tps-slo", "x-kairos-slo-class"):
        try:
            asked = from_headers([(header, value)])
        except InputError:
            continue
        slo = SloClasses(Slo(1, 1), {}).resolve(SloRequest(asked.ttft_ms, asked.tpot_ms))
        assert 0 < slo.ttft_ms <= 3_600_000
        assert 0 < slo.tpot_ms <= 600_000


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.integers() | st.text(), st.lists))
def test_any_json_value_is_read_or_refused(value: object) -> None:
    for field in ("ttft_ms", "tpot_ms", "class", "elapsed_ms"):
        message = ""
        try:
            from_mapping({field: value}, "body")
        except InputError as error:
            message = str(error)
        assert not message or (field in message and len(message) < 250)


def test_applied_header_names_all_three() -> None:
    assert Slo(500, 25.5, "gold").header() == "ttft-ms=500, tpot-ms=25.5, class=gold"
