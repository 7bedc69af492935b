"""Low-rank adapters: the network with them is the network of merged weights, and a chain of two smaller layers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from roboalign_ray.foundation.failures import UserError
from roboalign_ray.world_model.diffusion.adapters import Adapters, whole_weights


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.linear = nn.Linear(6, 5)
        self.encoder = nn.Linear(5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.encoder(self.linear(self.conv(x).mean((2, 3))))


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net()


def adapters_of(net: Net, moved: bool = True, **changes: tuple[str, ...]) -> Adapters:
    torch.manual_seed(1)
    parts = {"targets": ("conv", "linear"), "whole": ("encoder",)} | changes
    made = Adapters(net, rank=2, alpha=6.0, targets=parts["targets"], whole=parts["whole"])
    if moved:
        with torch.no_grad():
            for value in made.parameters():
                value += 0.1 * torch.randn(value.shape)
    return made


def test_new_adapters_change_nothing(net: Net) -> None:
    x, made = torch.randn(2, 3, 4, 4), adapters_of(net, moved=False)
    weights = whole_weights(dict(net.named_parameters()), made.factors())
    assert torch.equal(functional_call(net, weights, x), net(x))


def test_an_adapted_convolution_is_the_base_and_a_chain_of_two(net: Net) -> None:
    """Independent of the merge: the adapter runs as layers of its own, as libraries for LoRA run it."""
    x, made = torch.randn(2, 3, 4, 4), adapters_of(net)
    down, up = made.down["conv/weight"].view(2, 3, 3, 3), made.up["conv/weight"].view(6, 2, 1, 1)
    hidden = net.conv(x) + 3.0 * F.conv2d(F.conv2d(x, down, padding=1), up)
    hidden = hidden.mean((2, 3))
    hidden = net.linear(hidden) + 3.0 * hidden @ made.down["linear/weight"].T @ made.up["linear/weight"].T
    expected = F.linear(hidden, made.whole["encoder/weight"], made.whole["encoder/bias"])
    found = functional_call(net, whole_weights(dict(net.named_parameters()), made.factors()), x)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(found, net(x), atol=1e-2)


def test_only_adapters_and_whole_weights_are_trained_and_travel(net: Net) -> None:
    made = adapters_of(net)
    assert sorted(made.factors()) == [
        "conv.weight.down",
        "conv.weight.up",
        "encoder.bias",
        "encoder.weight",
        "linear.weight.down",
        "linear.weight.up",
    ]
    x = torch.randn(2, 3, 4, 4)
    net.requires_grad_(False)
    functional_call(net, whole_weights(dict(net.named_parameters()), made.factors()), x).sum().backward()
    assert all(value.grad is not None and bool(value.grad.any()) for value in made.parameters())
    assert sum(v.numel() for v in made.factors().values()) == 2 * (27 + 6) + 2 * (6 + 5) + 12


def test_whole_weights_of_a_whole_model_are_those(net: Net) -> None:
    given = {name: value.detach() + 1 for name, value in net.named_parameters()}
    found = whole_weights(dict(net.named_parameters()), given)
    assert found.keys() == given.keys()
    assert all(torch.equal(found[name], value) for name, value in given.items())


def test_adapters_are_added_to_the_precision_of_the_base(net: Net) -> None:
    made = adapters_of(net)
    base = {name: value.detach().bfloat16() for name, value in net.named_parameters()}
    assert whole_weights(base, made.factors())["conv.weight"].dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"conv.weight.down": None}, "conv.weight.up"),
        ({"conv.weight.up": None}, "conv.weight.down"),
        ({"convolution.weight": torch.zeros(1)}, "convolution.weight"),
        ({"conv.weight.down": torch.zeros(2, 3)}, "conv.weight.down"),
        ({"encoder.weight": torch.zeros(3)}, "encoder.weight"),
    ],
)
def test_what_does_not_fit_is_named(net: Net, change: dict[str, torch.Tensor | None], named: str) -> None:
    given = {
        name: value for name, value in (adapters_of(net).factors() | change).items() if value is not None
    }
    with pytest.raises(UserError, match=named):
        whole_weights(dict(net.named_parameters()), given)


@pytest.mark.parametrize("setting", ["targets", "whole"])
def test_a_part_of_no_name_is_refused(net: Net, setting: str) -> None:
    with pytest.raises(UserError, match=rf"lora.{setting}: no weight .* 'attention' .*conv, encoder, linear"):
        adapters_of(net, **{setting: ("attention",)})
