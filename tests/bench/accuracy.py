"""What rounding linear layers to bytes costs in answers: the demonstration, beside float32."""

from functools import partial

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import nn
from transformers import Qwen2ForCausalLM

from configs.demo.training.chat import question
from configs.demo.training.evaluate import ANSWER_TOKENS_MAX
from configs.demo.training.examples import held_out_examples
from configs.demo.training.tasks import TASKS
from configs.demo.training.tokenizer import load_tokenizer
from configs.demo.training.train import DEMO_FOLDER, SEED
from tests.bench.serving import complete, serve
from tests.bench.table import markdown
from weft.kernels.int8_linear import cpu, reference
from weft.kernels.int8_linear.reference import round_weight

# Of each task: those that are answered, and those whose right answers are predicted.
PROMPTS, PREDICTED = 200, 60
# Of what norms and inner layers give, so many channels are made so many times as large.
LARGE_CHANNELS, LARGE = 3, (1, 30)


def run(*, large, threads):
    """Return a row for each task and each way of computing linear layers.

    Some channels are ``large`` times as large, as language models of billions have them, and the
    weights for them so much smaller: in exact numbers all stays as it was.
    """
    torch.set_num_threads(threads)
    sets = {task.name: held_out_examples(task, PREDICTED, SEED) for task in TASKS}
    tokenizer = load_tokenizer(DEMO_FOLDER / "model")
    rows = []
    for name, examples in sets.items():
        texts = [question(each.prompt) + each.answer for each in examples]
        tokens = [tokenizer(text, return_token_type_ids=False).input_ids for text in texts]
        exact = None
        for kind, make in KINDS.items():
            model = _model(name, make, large)
            predicted = _predicted(model, tokens)
            exact = predicted if exact is None else exact
            rows.append((f"{name}, {kind}", *_compared(tokens, predicted, exact)))
    return markdown(("adapter, linear layers", "perplexity", "divergence", "same token"), rows)


def answers(*, threads):
    """Return a row for each task: how many held-out prompts weft answers right, in one batch."""
    sets = {task.name: held_out_examples(task, PROMPTS, SEED) for task in TASKS}
    asked = [(name, question(each.prompt)) for name in sets for each in sets[name]]
    folders = {name: DEMO_FOLDER / "adapters" / name for name in sets}
    told = {}
    for quantization in ("none", "int8"):
        options = {"threads": threads, "quantization": quantization}
        with serve(DEMO_FOLDER / "model", folders, **options) as server:
            told[quantization] = iter(complete(server, asked, tokens=ANSWER_TOKENS_MAX))
    rows = []
    for name, examples in sets.items():
        floats, rounded = ([next(told[how]) for _ in examples] for how in ("none", "int8"))
        expected = [each.answer for each in examples]
        rows.append(
            (name, _equal(floats, expected), _equal(rounded, expected), _equal(rounded, floats))
        )
    return markdown(("adapter", "floats right", "int8 right", "same text"), rows)


def _equal(texts, others):
    return _share([one == other for one, other in zip(texts, others, strict=True)])


class _WeightsRounded:
    """Inputs are not."""

    def __init__(self, weight, bias):
        values, scales = round_weight(weight)
        self.apply = partial(F.linear, weight=values * scales[:, None], bias=bias)

    def __call__(self, x):
        return self.apply(x)


class _RowsRounded(_WeightsRounded):
    """Inputs with one scale for all of a row."""

    def __call__(self, x):
        values, scales = round_weight(x)
        return self.apply(values * scales[:, None])


class _Rounded(nn.Module):
    """A linear layer as another way of computing it has it."""

    def __init__(self, linear, make):
        super().__init__()
        self.linear = make(linear.weight.detach(), linear.bias)

    def forward(self, x):
        return self.linear(x.flatten(0, -2).contiguous()).view(*x.shape[:-1], -1)


KINDS = {
    "float32": None,
    "only weights in bytes": _WeightsRounded,
    "one scale a row": _RowsRounded,
    "int8": reference.Int8Linear if cpu.library() is None else cpu.Int8Linear,
}


def _model(adapter, make, large):
    base = Qwen2ForCausalLM.from_pretrained(DEMO_FOLDER / "model", dtype=torch.float32)
    model = PeftModel.from_pretrained(base, DEMO_FOLDER / "adapters" / adapter)
    if large > 1:
        _enlarge(base.model.layers, large)
    if make is not None:
        for name, module in list(model.named_modules()):
            if isinstance(module, nn.Linear) and "lora_" not in name:
                model.set_submodule(name, _Rounded(module, make))
    return model.eval()


@torch.no_grad()
def _enlarge(layers, factor):
    generator = torch.Generator().manual_seed(SEED)
    for layer in layers:
        attention, mlp = layer.self_attn, layer.mlp
        for norm, readers in (
            (layer.input_layernorm, (attention.q_proj, attention.k_proj, attention.v_proj)),
            (layer.post_attention_layernorm, (mlp.gate_proj, mlp.up_proj)),
        ):
            channels = torch.randperm(len(norm.weight), generator=generator)[:LARGE_CHANNELS]
            norm.weight[channels] *= factor
            for reader in readers:
                _multiply_inputs(reader, channels, 1 / factor)
        channels = torch.randperm(mlp.up_proj.out_features, generator=generator)[:LARGE_CHANNELS]
        for weight in _weights(mlp.up_proj, "lora_B"):
            weight[channels] *= factor
        _multiply_inputs(mlp.down_proj, channels, 1 / factor)


def _multiply_inputs(linear, channels, factor):
    for weight in _weights(linear, "lora_A"):
        weight[:, channels] *= factor


def _weights(linear, part):
    """Of the base, and of one part of the adapter if the layer has one."""
    if isinstance(linear, nn.Linear):
        return [linear.weight]
    return [linear.base_layer.weight, linear.get_submodule(part)["default"].weight]


@torch.inference_mode()
def _predicted(model, tokens):
    """Log probabilities of the next token, after each of every text's."""
    return [model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1) for ids in tokens]


def _compared(tokens, predicted, exact):
    chosen, divergences, same = [], [], []
    for ids, ours, theirs in zip(tokens, predicted, exact, strict=True):
        chosen.append(ours.gather(1, torch.tensor(ids[1:])[:, None]))
        divergences.append((theirs.exp() * (theirs - ours)).sum(1))
        same.append(theirs.argmax(1) == ours.argmax(1))
    perplexity = torch.cat(chosen).mean().neg().exp()
    divergence = torch.cat(divergences).mean().clamp(min=0)
    return f"{perplexity:.4f}", f"{divergence:.5f}", _share(torch.cat(same).tolist())


def _share(found):
    return f"{100 * sum(found) / len(found):.1f}%"
