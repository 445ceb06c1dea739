"""That the measurements measure what they say, in small; no test here looks at a clock."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from tests.bench import options
from tests.bench.gpu import batches, decode, shapes, sweep
from tests.bench.load import Load
from tests.bench.peers import compare, tokenizer
from tests.bench.peers.engine import Answer, Setting
from tests.bench.peers.process import NotServing, serving

CASES = sweep.cases([8], [1, 4], ["zipf"])


@pytest.mark.parametrize("distribution", batches.DISTRIBUTIONS)
def test_a_batch_is_sorted_and_as_large_as_asked(distribution):
    rows = batches.draw(distribution, 40, 16)
    assert len(rows) == 40
    assert (np.diff(rows) >= 0).all()
    assert rows.min() >= 0
    assert rows.max() < 16


def test_distinct_rows_have_each_adapter_alike_and_identical_ones_the_same():
    assert np.bincount(batches.draw("distinct", 32, 8)).tolist() == [4] * 8
    assert set(batches.draw("identical", 32, 8).tolist()) == {0}


def test_zipf_prefers_the_first_adapters():
    counts = np.bincount(batches.draw("zipf", 2000, 8), minlength=8)
    assert counts[0] > 2 * counts[1] > 2 * counts[5]


def test_a_rotated_batch_has_the_same_runs_of_other_adapters():
    rows = batches.draw("distinct", 6, 3)
    assert batches.rotated(rows, 3, 8).tolist() == [3, 3, 4, 4, 5, 5]
    starts, slots = batches.segments(batches.rotated(rows, 6, 8))
    assert (starts.tolist(), slots.tolist()) == ([0, 2, 4, 6], [0, 6, 7])


def test_an_adapter_of_llama_3_8b_has_as_many_bytes_as_its_matrices():
    # hidden 4096, queries 4096, keys and values 1024, intermediate 14336; 2 bytes; rank 16.
    inputs, outputs = 6 * 4096 + 14336, 4096 + 2 * 1024 + 4096 + 2 * 14336 + 4096
    cost = sweep._cost(
        shapes.SHAPES["Llama-3-8B"], np.array([16]), [(np.zeros(2, np.int64), 0)], torch.bfloat16
    )
    assert cost.adapter_bytes == 2 * 16 * (inputs + outputs)
    assert cost.operations == 2 * 2 * 16 * (inputs + outputs)


@pytest.mark.slow
def test_the_kernels_measured_do_what_the_definition_says(tmp_path):
    pytest.importorskip("triton")
    # In the interpreter arithmetic on bfloat16 is arithmetic on its bits for kernels of others.
    results = sweep.run("tiny", CASES, dtype=torch.float16)
    assert {"weft", "torch bmm"} <= results.seconds.keys()
    assert not [note for note in results.notes if "wrong" in note]
    for case in CASES:
        assert all(seconds[case] > 0 for seconds in results.seconds.values())
    assert sweep.table(results).count("\n") == 1 + len(CASES)
    told = sweep.draw("tiny", results, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) in (
        [],
        ["tiny-rates.png", "tiny-times.png"],
    )
    assert len(told) == max(1, len(list(tmp_path.iterdir())))


@pytest.mark.slow
def test_decode_steps_are_measured_with_every_number_of_adapters():
    pairs = decode.pairs([1, 5], [1, 3])
    table = decode.run("tiny", pairs, steps=2, device="cpu")
    cells = [line.split("|")[1:3] for line in table.splitlines()[2:]]
    assert [(int(rows), int(adapters)) for rows, adapters in cells] == pairs
    assert pairs == [(1, 0), (1, 1), (5, 0), (5, 1), (5, 3)]


def test_a_numbered_tokenizer_tells_every_token(tmp_path):
    tokenizer.save(tmp_path, 50)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert len(loaded) == 50
    assert tokenizer.tokens(loaded.decode([7, 0, 49])) == [7, 0, 49]
    assert loaded("<7><49>")["input_ids"] == [7, 49]


@pytest.mark.parametrize("answer", [Answer(3, [5, 5, 5]), Answer(4, [5, 5]), Answer(5, [5] * 5)])
def test_an_engine_that_says_too_much_or_too_little_is_not_measured(answer):
    with pytest.raises(compare.Wrong, match="of 4 that were asked for"):
        compare._checked(lambda prompts, tokens: [answer], [(None, [4])], 4)


def test_tokens_agree_up_to_the_first_difference():
    assert compare._agreement([[1, 2, 9, 4], [5, 6, 7, 8]], [[1, 2, 3, 4], [5, 6, 7, 8]]) == 6 / 8


def test_a_server_that_ends_is_reported_with_what_it_said():
    command = ["sh", "-c", "echo no such file at all >&2; exit 3"]
    server = serving(command, ready_url="http://127.0.0.1:9/", environment=None)
    with pytest.raises(NotServing, match="no such file at all"):
        server.__enter__()


def test_an_engine_that_is_not_installed_is_skipped_with_the_reason(tmp_path):
    for name in ("vLLM", "llama.cpp"):
        assert "is not there" in compare.ENGINES[name].missing(tmp_path)
        assert str(tmp_path) in compare.ENGINES[name].missing(tmp_path)


@pytest.mark.slow
def test_adapters_in_gguf_files_are_those_of_peft(tmp_path):
    gguf = pytest.importorskip("gguf")
    from tests.bench import models
    from tests.bench.peers import gguf_files

    folder = compare._model("demo", tmp_path, "float32")
    (path,) = models.adapter_folders(folder, tmp_path, 1).values()
    model = gguf_files.save_model(folder, tmp_path, "bfloat16")
    written = gguf.GGUFReader(gguf_files.save_adapter(path, model, tmp_path, "bfloat16"))
    names = {tensor.name: tuple(tensor.shape) for tensor in written.tensors}
    assert names["blk.3.ffn_down.weight.lora_a"] == (688, 16)
    assert names["blk.0.attn_q.weight.lora_b"] == (16, 256)
    assert len(names) == 4 * 7 * 2
    weights = {tensor.name: tensor.tensor_type for tensor in gguf.GGUFReader(model).tensors}
    assert weights["token_embd.weight"] == gguf.GGMLQuantizationType.BF16
    assert weights["output_norm.weight"] == gguf.GGMLQuantizationType.F32


@pytest.mark.slow
@pytest.mark.system
def test_weft_is_served_and_says_what_transformers_does(tmp_path):
    table = compare.run(
        "demo", Load(4, 8, 4), engines=["weft"], dtype="float32", rounds=1, threads=1,
        peers=tmp_path,
    )  # fmt: skip
    (row,) = table.splitlines()[2:]
    assert row.startswith("| weft |")
    assert row.endswith("| 100% |")


def test_adapters_that_change_nothing_are_no_measurement(monkeypatch, tmp_path):
    class Deaf:
        @contextmanager
        def start(setting):
            yield lambda prompts, tokens: [Answer(tokens, [5] * tokens) for _ in prompts]

    monkeypatch.setitem(compare.ENGINES, "deaf", Deaf)
    setting = Setting(tmp_path, {"a": tmp_path}, 8, "float32", Load(1, 1, 1), 1, tmp_path, tmp_path)
    with pytest.raises(compare.Wrong, match="no adapter changes anything"):
        compare._measure("deaf", setting, [("a", [4])], [[5], [5]], 1)


def test_an_unknown_section_is_refused(capsys):
    with pytest.raises(SystemExit):
        options.parse(["through-put"])
    assert "through-put" in capsys.readouterr().err
    assert options.parse([]).sections == list(options.SECTIONS)
