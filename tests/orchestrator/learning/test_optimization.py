from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from orchestrator.learning.optimization import Optimization
from state.parameter_arena import ParameterArena


def network() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


def optimization(module: nn.Module, max_grad_norm: float = 0.5) -> Optimization:
    return Optimization(
        ParameterArena(module),
        betas=(0.9, 0.999),
        eps=1e-5,
        weight_decay=0.0,
        max_grad_norm=max_grad_norm,
        max_minibatches=8,
        losses=1,
    )


def backward(opt: Optimization, loss: torch.Tensor, share: float = 1.0) -> None:
    opt.backward(loss, loss.detach().reshape(1), share)


def weights(module: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()]).clone()


@pytest.mark.slow
@pytest.mark.parametrize("max_grad_norm", [0.01, 0.5, math.inf])
def test_clipped_steps_equal_torchs_own_clipping_and_adam(max_grad_norm: float) -> None:
    ours, reference = network(), network()
    opt = optimization(ours, max_grad_norm)
    adam = torch.optim.Adam(reference.parameters(), lr=0.01, eps=1e-5)
    opt.begin_epoch(0.01)
    for step in range(6):
        x = torch.randn(16, 3, generator=torch.Generator().manual_seed(step))
        backward(opt, ours(x).square().mean())
        opt.step()
        adam.zero_grad()
        reference(x).square().mean().backward()
        nn.utils.clip_grad_norm_(reference.parameters(), max_grad_norm)
        adam.step()
    torch.testing.assert_close(weights(ours), weights(reference))


def test_gradients_of_several_minibatches_make_one_step() -> None:
    whole, parts = network(), network()
    x = torch.randn(16, 3)
    one, several = optimization(whole), optimization(parts)
    one.begin_epoch(0.01)
    several.begin_epoch(0.01)
    backward(one, whole(x).square().mean())
    one.step()
    for half in x.chunk(2):
        backward(several, parts(half).square().mean(), share=0.5)
    several.step()
    torch.testing.assert_close(weights(whole), weights(parts))
    assert several.read_log().shape == (2, 2)


@pytest.mark.parametrize("resumed", [False, True])
def test_frozen_parameters_and_gradients_set_to_none_are_as_with_torchs_own_adam(resumed: bool) -> None:
    """Each parameter has a step count of its own, and what is left out keeps its moments; also after a restart."""
    ours, reference = network(), network()
    opt = optimization(ours, math.inf)
    adam = torch.optim.Adam(reference.parameters(), lr=0.01, eps=1e-5)
    opt.begin_epoch(0.01)
    for step in range(24):
        for module in (ours, reference):
            module[0].weight.requires_grad_(step not in range(3, 9))
            module[2].requires_grad_(step not in range(7, 12))
        if step == 8:
            continue  # nothing is learned
        x = torch.randn(16, 3, generator=torch.Generator().manual_seed(step))
        backward(opt, ours(x).square().mean())
        adam.zero_grad()
        reference(x).square().mean().backward()
        if step % 5 == 4:
            ours[0].bias.grad = reference[0].bias.grad = None
        if step % 8 == 0:
            opt_gradient, gradient = ours[2].weight.grad, reference[2].weight.grad
            assert opt_gradient is not None
            assert gradient is not None
            ours[2].weight.grad, reference[2].weight.grad = opt_gradient * 0.5, gradient * 0.5
        opt.step()
        adam.step()
        if step % 8 == 7:
            opt.begin_epoch(0.01)  # the log has 8 rows
            if resumed:
                memory, steps = moments(opt)
                ours.requires_grad_(True)  # as a network is when it is made anew
                opt = optimization(ours, math.inf)
                opt.read_moments(memory, steps.tolist())
                opt.begin_epoch(0.01)
    torch.testing.assert_close(weights(ours), weights(reference))


def test_a_checkpoint_with_one_step_count_for_all_parameters_is_understood() -> None:
    one, two = network(), network()
    first, second = optimization(one), optimization(two)
    for opt, module in ((first, one), (second, two)):
        opt.begin_epoch(0.01)
        backward(opt, module(torch.ones(2, 3)).square().mean())
        opt.step()
    memory, steps = moments(first)
    assert steps.tolist() == [1.0] * 4
    second.read_moments(memory, [1.0])
    for opt, module in ((first, one), (second, two)):
        backward(opt, module(torch.ones(2, 3)).square().mean())
        opt.step()
    assert torch.equal(weights(one), weights(two))


def moments(opt: Optimization) -> tuple[torch.Tensor, torch.Tensor]:
    memory = torch.zeros(opt.moments_nbytes, dtype=torch.uint8)
    return memory, opt.write_moments(memory)


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_a_step_that_is_not_finite_leaves_weights_and_moments_as_they_were(poison: float) -> None:
    module = network()
    opt = optimization(module)
    opt.begin_epoch(0.01)
    x = torch.randn(16, 3)
    backward(opt, module(x).square().mean())
    opt.step()
    before, kept = weights(module), moments(opt)
    backward(opt, module(x).square().mean() * poison)
    opt.step()
    assert torch.equal(weights(module), before)
    assert all(map(torch.equal, kept, moments(opt)))
    assert opt.read_log().isfinite().all(dim=1).tolist() == [True, False]
    backward(opt, module(x).square().mean())
    opt.step()
    assert not torch.equal(weights(module), before), "later steps go on"


def test_the_log_has_the_losses_and_the_gradient_norm() -> None:
    module, reference = network(), network()
    opt = optimization(module)
    opt.begin_epoch(0.01)
    x = torch.randn(16, 3)
    backward(opt, module(x).square().mean())
    opt.step()
    loss = reference(x).square().mean()
    loss.backward()
    norm = torch.cat([parameter.grad.flatten() for parameter in reference.parameters()]).norm()  # type: ignore[union-attr]
    torch.testing.assert_close(opt.read_log(), torch.stack([loss.detach(), norm]).unsqueeze(0))


def test_state_goes_on_where_it_was_saved() -> None:
    first, second = network(), network()
    one = optimization(first)
    x = torch.randn(16, 3)
    one.begin_epoch(0.01)
    backward(one, first(x).square().mean())
    one.step()
    two = optimization(second)
    second.load_state_dict(first.state_dict())
    memory, steps = moments(one)
    two.read_moments(memory, steps.tolist())
    for module, opt in ((first, one), (second, two)):
        opt.begin_epoch(0.01)
        backward(opt, module(x).square().mean())
        opt.step()
    assert torch.equal(weights(first), weights(second))
