"""How fast a training step is, what it takes, and how that compares.

    python benchmarks/train_step.py                  our own model on this machine's processor
    python benchmarks/train_step.py --peer           beside retro-pytorch, in the environment of README.md
    python benchmarks/train_step.py --device cuda    on a GPU: MFU of the 425M model too

Contestants take turns in one process; a ratio is of medians. On a processor everything runs on one thread and seconds
are seconds of that thread's work. Peak memory is measured in a process for each contestant.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from contestants import CHUNK, ByteModel, Shape, Step, our_step, peer_step, textbook_relative_attention
from side_by_side import Clock, Row, markdown, matrix_product, origin, peak_memory, print_growth
from torch import Tensor

from retro_lab.model.kernels.cross_entropy import summed_cross_entropy
from retro_lab.model.kernels.relative_attention import relative_attention
from retro_lab.model.positions import descending_distances, sinusoids

LARGE_VOCABULARY = 128_000
LENGTHS = (512, 2048)
LOSS_STEPS = 100
PEER = "retro-pytorch, float32"


def main() -> None:
    """Measure, print the tables and, with `--out`, write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", action="store_true", help="beside retro-pytorch")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="folder for train_step.md")
    parser.add_argument("--memory-of", choices=MEMORY, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch._dynamo.config.recompile_limit = 64  # of one piece of code, which all models here share
    device = torch.device(arguments.device)
    if arguments.memory_of:
        print_growth(device, MEMORY[arguments.memory_of](Shape(arguments.width, 2048, batch=2), device))
        return

    clock = Clock(device)
    sections = [f"# Training step\n\n{origin(device)}"]
    rows: list[Row] = []
    for length in LENGTHS:
        table, ratios = steps(clock, Shape(arguments.width, length), arguments.rounds, peer=arguments.peer)
        print(table, end="\n\n", flush=True)
        sections.append(table)
        rows += ratios
    rows += [*parts(clock, arguments.rounds), *memory(arguments), losses()]
    sections.append("## Ratios\n\n" + markdown(rows))
    print(sections[-1])
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "train_step.md").write_text("\n\n".join(sections) + "\n", encoding="utf-8")


def steps(clock: Clock, shape: Shape, rounds: int, *, peer: bool) -> tuple[str, list[Row]]:
    """Measure whole training steps of one shape."""
    device = clock.device
    products = {name: matrix_product(device, dtype) for name, dtype in PRECISIONS.items()}
    contestants: dict[str, Callable[[], object]] = {f"product {name}": work for name, (work, _) in products.items()}
    models: dict[str, tuple[Step, int]] = {}
    for k, model in ((0, "baseline"), (shape.k, "RETRO")):
        for name, bfloat16 in (("float32", False), ("bfloat16", True)):
            for compiled in (False, True):
                step = our_step(shape, device, k=k, bfloat16=bfloat16, compiled=compiled)
                models[f"{model} {name}{' compiled' * compiled}"] = step, k
    models["RETRO rotary bfloat16 compiled"] = (
        our_step(shape, device, bfloat16=True, compiled=True, positions="rotary"),
        shape.k,
    )
    if peer:
        models[PEER] = peer_step(shape, device), shape.k
    seconds = clock.in_turns(contestants | {name: step for name, (step, _) in models.items()}, rounds)
    peak = {name: flops / seconds[f"product {name}"] for name, (_, flops) in products.items()}

    lines = [
        f"## d = {shape.width}, n = {shape.length}, k = {shape.k}, {shape.layers} layers, V = {shape.vocabulary:,}",
        "",
        "| Step | Tokens per second | TFLOP/s required | Share of the matrix product |",
        "| :-- | --: | --: | --: |",
    ]
    share = {}
    for name, (_, k) in models.items():
        rate = shape.training_flops(k) / seconds[name]
        share[name] = rate / peak["bfloat16" if "bfloat16" in name else "float32"]
        tokens = shape.batch * shape.length / seconds[name]
        lines.append(f"| {name} | {tokens:,.0f} | {rate / 1e12:.3f} | {share[name]:.0%} |")

    n = f"n = {shape.length}"
    best = {
        name: min(seconds[f"{model} {name}"], seconds[f"{model} {name} compiled"])
        for model in ("RETRO",)
        for name in PRECISIONS
    }
    rows = []
    if peer:
        theirs = seconds[PEER]
        must, aim = (1.1, 1.3) if shape.length <= 512 else (1.2, 1.5)
        rows.append(Row("T7", f"RETRO float32, {n}", PEER, theirs / best["float32"], must, aim))
        fast = seconds["RETRO bfloat16 compiled"]
        rows.append(Row("T8", f"RETRO bfloat16 compiled, {n}", PEER, theirs / fast, 1.8, 2.1))
    for name, must, aim in (("float32", 0.70, 0.80), ("bfloat16", 0.55, 0.68)):
        reached = max(share[f"RETRO {name}"], share[f"RETRO {name} compiled"])
        rows.append(Row("T9", f"RETRO {name}, {n}", "matrix product", reached, must, aim))
    overhead = shape.training_flops(shape.k) / shape.training_flops(0)
    for kind in ("float32", "bfloat16 compiled"):
        measured = seconds[f"RETRO {kind}"] / seconds[f"baseline {kind}"] / overhead
        rows.append(Row("T10", f"time of RETRO over baseline, {kind}, {n}", "their FLOPs", measured, 1.25, 1.05, True))
    return "\n".join(lines), rows


def parts(clock: Clock, rounds: int) -> list[Row]:
    """Measure attention, cross-entropy and optimizer by themselves."""
    device = clock.device
    ours, textbook = attentions(device)
    difference = max((one - other).abs().max().item() for one, other in zip(ours(), textbook(), strict=True))
    assert difference < 1e-3, f"the two attentions differ by {difference}"
    chunked, whole = cross_entropies(device)
    fused, foreach = (optimizer(device, **kind) for kind in ({"fused": True}, {"foreach": True}))
    seconds = clock.in_turns(
        {"ours": ours, "textbook": textbook, "chunked": chunked, "whole": whole, "fused": fused, "foreach": foreach},
        rounds,
    )
    return [
        Row(
            "T11",
            "Transformer-XL attention, n = 2048",
            "textbook form",
            seconds["textbook"] / seconds["ours"],
            2.5,
            3.1,
        ),
        Row(
            "T12",
            "cross-entropy of 128,000",
            "whole logits, time",
            seconds["chunked"] / seconds["whole"],
            1.15,
            0.8,
            True,
        ),
        Row("T13", "fused AdamW", "foreach AdamW", seconds["foreach"] / seconds["fused"], 4, 6.5),
    ]


def attentions(device: torch.device) -> tuple[Callable[[], list[Tensor]], Callable[[], list[Tensor]]]:
    """Forward and backward pass of causal Transformer-XL attention: ours, and the textbook's; they return gradients."""
    heads, n, a = 16, 2048, 64
    torch.manual_seed(0)
    query, key, value = (torch.randn(heads, n, a, device=device, requires_grad=True) for _ in range(3))
    biases = [torch.randn(heads, a, device=device, requires_grad=True) for _ in range(2)]
    encodings = sinusoids(descending_distances(n, 1, 0, device), heads * a, torch.float32)  # n - 1 to 0, and -1
    position = encodings.unflatten(-1, (heads, a)).permute(1, 2, 0).contiguous().requires_grad_()  # [H, A, T]
    grad_output = torch.randn(heads, n, a, device=device)

    def gradients(attended: Tensor) -> list[Tensor]:
        *others, of_position = torch.autograd.grad(attended, (query, key, value, *biases, position), grad_output)
        return [attended, *others, of_position[..., :n]]

    def tiled() -> list[Tensor]:
        tensors = (tensor[:, None, None] for tensor in (query, key, value))  # [H, G, blocks, N, A]
        return gradients(relative_attention(*tensors, (*biases, position), causal=True)[:, 0, 0])

    def textbook() -> list[Tensor]:
        content, shifted = (query + bias[:, None] for bias in biases)
        return gradients(textbook_relative_attention(content, shifted, key, value, position[..., :n].transpose(1, 2)))

    return tiled, textbook


def cross_entropies(device: torch.device) -> tuple[Callable[[], object], Callable[[], object]]:
    """Forward and backward pass of the loss over a large vocabulary: in slices, and with all logits in float32."""
    torch.manual_seed(0)
    hidden = torch.randn(1024, 512, device=device, requires_grad=True)
    weight = (0.02 * torch.randn(LARGE_VOCABULARY, 512, device=device)).requires_grad_()
    targets = torch.randint(LARGE_VOCABULARY, (1024,), device=device)
    mask = torch.ones_like(targets, dtype=torch.bool)

    def chunked() -> object:
        return torch.autograd.grad(summed_cross_entropy(hidden, weight, targets, mask), (hidden, weight))

    def whole() -> object:
        return torch.autograd.grad(
            F.cross_entropy((hidden @ weight.T).float(), targets, reduction="sum"), (hidden, weight)
        )

    return chunked, whole


def optimizer(device: torch.device, **kind: bool) -> Callable[[], object]:
    """A step of AdamW on the 42M parameters of the benchmark's model with the vocabulary of GPT-2."""
    step = our_step(Shape(512, CHUNK, vocabulary=50_257), device)
    parameters = [p for group in step.optimizer.param_groups for p in group["params"]]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    return torch.optim.AdamW(parameters, lr=1e-4, **kind).step


def memory(arguments: argparse.Namespace) -> list[Row]:
    """Compare peak memory, of whole steps and of the loss."""
    common = ["--device", arguments.device, "--width", str(arguments.width), "--memory-of"]
    grown = {
        name: peak_memory(__file__, [*common, name]) for name in MEMORY if arguments.peer or name != "retro-pytorch"
    }
    logits = {name: grown[f"{name} cross-entropy"] - GRADIENT_BYTES for name in ("chunked", "whole")}
    rows = [Row("T12", "extra memory of it", "whole logits", logits["chunked"] / logits["whole"], 0.25, 0.05, True)]
    if arguments.peer:
        for name in ("ours", "ours bfloat16"):
            ratio = grown[name] / grown[PEER]
            rows.append(Row("memory", f"step, {name}, 2 x 2048 tokens", PEER, ratio, 0.5, None, True))
    return rows


def losses() -> Row:
    """Train on real text in both precisions and compare where they arrive."""
    final = {}
    for bfloat16 in (False, True):
        trained = ByteModel()
        adamw = torch.optim.AdamW(trained.parameters(), lr=1e-3, fused=True)
        for step in range(LOSS_STEPS):
            with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                loss = trained.loss(step)
            loss.backward()
            adamw.step()
            adamw.zero_grad()
        final[bfloat16] = loss.item()
    off = abs(final[True] / final[False] - 1)
    return Row("loss", f"bfloat16 after {LOSS_STEPS} steps, off by", "float32", off, 0.01, None, True)


PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
GRADIENT_BYTES = 4 * 512 * (LARGE_VOCABULARY + 1024)
"""What both cross-entropies return: the gradients of read-out and states."""
MEMORY: dict[str, Callable[[Shape, torch.device], Callable[[], object]]] = {
    "ours": our_step,
    "ours bfloat16": lambda shape, device: our_step(shape, device, bfloat16=True),
    PEER: peer_step,
    "chunked cross-entropy": lambda _, device: cross_entropies(device)[0],
    "whole cross-entropy": lambda _, device: cross_entropies(device)[1],
}

if __name__ == "__main__":
    main()
