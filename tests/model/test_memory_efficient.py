"""What is kept for the backward pass is less than torch keeps; values and gradients are torch's."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retro_lab.model.kernels import memory_efficient


@pytest.mark.parametrize("slice_rows", [1, 4, 5, 1000])
@pytest.mark.parametrize("activation", [F.gelu, F.relu])
def test_project_activated(activation, slice_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_efficient, "ROWS", slice_rows)
    inner = torch.randn(3, 4, 6, dtype=torch.float64, requires_grad=True)
    weight, grad_output = torch.randn(5, 6, dtype=torch.float64, requires_grad=True), torch.randn(3, 4, 5).double()
    ours, torchs = memory_efficient.project_activated(inner, weight, activation), F.linear(activation(inner), weight)
    torch.testing.assert_close(ours, torchs)
    for actual, expected in zip(
        torch.autograd.grad(ours, (inner, weight), grad_output),
        torch.autograd.grad(torchs, (inner, weight), grad_output),
        strict=True,
    ):
        torch.testing.assert_close(actual, expected)


def test_a_frozen_weight_gets_no_gradient() -> None:
    inner, weight = torch.randn(4, 6, requires_grad=True), torch.randn(5, 6)
    memory_efficient.project_activated(inner, weight, F.gelu).sum().backward()
    assert weight.grad is None
    assert inner.grad is not None


def test_rms_norm() -> None:
    ours, torchs = (norm(6, eps=1e-5, dtype=torch.float64) for norm in (memory_efficient.RMSNorm, nn.RMSNorm))
    torch.manual_seed(0)
    hidden, grad_output = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True), torch.randn(2, 3, 6).double()
    for norm in (ours, torchs):
        nn.init.uniform_(norm.weight, generator=torch.Generator().manual_seed(1))
    results = [torch.autograd.grad(norm(hidden), (hidden, norm.weight), grad_output) for norm in (ours, torchs)]
    torch.testing.assert_close(ours(hidden), torchs(hidden))
    torch.testing.assert_close(*results)


def kept_bytes(work) -> int:
    """Bytes of the tensors that a forward pass keeps, each memory once."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        work()
    return sum(kept.values())


def test_less_is_kept() -> None:
    inner, weight = torch.randn(64, 32, requires_grad=True), torch.randn(8, 32, requires_grad=True)
    small = kept_bytes(lambda: memory_efficient.project_activated(inner, weight, F.gelu))
    assert small == inner.nbytes + weight.nbytes
    assert small < kept_bytes(lambda: F.linear(F.gelu(inner), weight))
