"""Model directories of the two platforms."""

import json
import threading

import numpy as np
import pytest
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from kairos.errors import InputError
from kairos_emulation.models import BOS, EOS, PRINTABLE, VOCABULARY, main, write_model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    write_model("tiny-random", folder)
    return folder


@pytest.fixture(scope="module")
def emulated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "emulated"
    write_model("emulated", folder)
    return folder


@pytest.mark.parametrize("text", ["Hello, world!\n", "naïve – 東京 🙂", " two  spaces", ""])
def test_the_tokenizer_returns_any_text_unchanged(tiny, text):
    tokenizer = Tokenizer.from_file(str(tiny / "tokenizer.json"))
    ids = tokenizer.encode(text).ids
    assert tokenizer.decode(ids) == text
    assert all(number < VOCABULARY for number in ids)


def test_special_tokens_are_where_the_configuration_says(tiny):
    tokenizer = Tokenizer.from_file(str(tiny / "tokenizer.json"))
    assert tokenizer.encode("<s></s>").ids == [BOS, EOS]


def test_generated_tokens_are_printable_characters_of_their_own(emulated):
    first, last = json.loads((emulated / "config.json").read_text())["output_tokens"]
    assert (first, last) == PRINTABLE
    tokenizer = Tokenizer.from_file(str(emulated / "tokenizer.json"))
    text = "".join(tokenizer.decode([number]) for number in range(first, last + 1))
    assert text == "".join(map(chr, range(33, 127)))


def test_the_head_of_the_tiny_model_scores_unprintable_tokens_zero(tiny):
    head = load_file(tiny / "model.safetensors")["lm_head.weight"]
    tokenizer = Tokenizer.from_file(str(tiny / "tokenizer.json"))
    silent = {number for number in range(VOCABULARY) if not head[number].any()}
    assert {BOS, EOS} <= silent
    assert len(silent) < VOCABULARY / 3
    for number in set(range(VOCABULARY)) - silent:
        text = tokenizer.decode([number])
        assert text
        assert text.isascii()
        assert text.isprintable()


def test_weights_are_real_and_the_same_everywhere(tiny, tmp_path):
    write_model("tiny-random", tmp_path / "again")
    once = load_file(tiny / "model.safetensors")
    again = load_file(tmp_path / "again/model.safetensors")
    assert all(np.array_equal(once[name], again[name]) for name in once)
    assert all(values.std() > 0.01 for name, values in once.items() if "norm" not in name)


def test_finished_model_is_not_written_again(tmp_path):
    assert write_model("emulated", tmp_path / "m")
    before = (tmp_path / "m/config.json").stat()
    assert not write_model("emulated", tmp_path / "m")
    assert (tmp_path / "m/config.json").stat().st_ino == before.st_ino


def test_other_kairos_model_is_replaced(tmp_path):
    write_model("emulated", tmp_path / "m")
    assert write_model("tiny-random", tmp_path / "m")
    config = json.loads((tmp_path / "m/config.json").read_text())
    assert config["architectures"] == ["Qwen3ForCausalLM"]
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_processes_may_write_the_same_model_at_once(tmp_path):
    errors = []

    def write():
        try:
            write_model("emulated", tmp_path / "m")
        except InputError as error:
            errors.append(error)

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert not write_model("emulated", tmp_path / "m")
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_directory_that_holds_no_model_is_left_alone(tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="not a Kairos model"):
        write_model("emulated", tmp_path)
    assert main(["emulated", str(tmp_path)]) == 2
    assert str(tmp_path) in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file"):
        write_model("emulated", tmp_path / "file" / "m")


def test_unknown_model_kind_is_refused_with_the_allowed_ones():
    with pytest.raises(InputError, match="tiny-random, emulated"):
        write_model("gpt", "anywhere")


def test_command_line_reports_whether_it_wrote_the_model(tmp_path, capsys):
    assert main(["emulated", str(tmp_path / "m")]) == 0
    assert "written to" in capsys.readouterr().out
    assert main(["emulated", str(tmp_path / "m")]) == 0
    assert "already in" in capsys.readouterr().out
