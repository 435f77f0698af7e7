"""The network for tokens: what it finds in them, however it is computed."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from orchestrator.policies.network import NetworkError, Spaces
from orchestrator.policies.token_sums import TokenSets, TokenTable, sums_of_rows
from orchestrator.policies.tokens import TokenEncoder, Tokens

SPACES = Spaces(spaces.Box(0, 255, (40, 3), np.uint8), spaces.Discrete(5))


def encoder_with(gain: float = 1.0, latents: int = 8) -> TokenEncoder:
    """Whose scores are so many times those at first."""
    torch.manual_seed(1)
    encoder = TokenEncoder(SPACES, latents)
    torch.nn.init.normal_(encoder.amounts.weight)
    with torch.no_grad():
        encoder.latents.mul_(gain)
    return encoder


def tokens_of(rows: int, kinds: int = 255) -> Any:
    """Some are missing, and all of the eighth row."""
    generator = np.random.default_rng(5)
    tokens = np.full((rows, 40, 3), 255, np.uint8)
    for row in tokens:
        there = generator.permutation(40)[: generator.integers(1, 41)]
        row[there] = generator.integers(0, kinds, (len(there), 3))
    tokens[7] = 255
    return tokens


def attended(encoder: TokenEncoder, tokens: Any) -> Any:
    """What the encoder finds in the tokens `[tokens, 3]` of one row, in float64 and one after another."""
    weights = {name: tensor.double() for name, tensor in (*encoder.named_parameters(), *encoder.named_buffers())}
    places = weights["places"] @ weights["place.weight"].t() + weights["place.bias"]
    present = [token for token in tokens.tolist() if token[0] != 255] or tokens[:1].tolist()
    vectors = torch.stack(
        [
            weights["kinds.weight"][feature * 13 + min(value, 8 + int(np.log2(max(value, 8) / 8)))]
            + weights["amounts.weight"][feature] * np.log2(value + 1) / 8
            + places[coordinate]
            for coordinate, feature, value in present
        ]
    )
    shares = (weights["latents"] @ vectors.t() / np.sqrt(vectors.shape[1])).softmax(1)
    return (shares @ vectors).flatten()


@pytest.mark.parametrize(("gain", "latents"), [(1.0, 8), (90.0, 8), (300.0, 8), (1.0, 1), (1.0, 40)])
@pytest.mark.parametrize("kinds", [255, 5])
def test_rows_are_computed_together_as_each_alone(kinds: int, gain: float, latents: int) -> None:
    encoder, tokens = encoder_with(gain, latents), tokens_of(40, kinds)
    assert set(dict(encoder.named_buffers())) == {"places", "buckets"}, "checkpoints of earlier releases have these"
    expected = torch.stack([attended(encoder, row) for row in tokens])
    found = encoder(torch.from_numpy(tokens))
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-4)
    with torch.inference_mode(), encoder.fixed():
        for rows in (tokens[:20], tokens[20:], tokens):
            fixed = encoder(torch.from_numpy(rows))
        torch.testing.assert_close(fixed, found, rtol=1e-3, atol=1e-4)
    upstream = torch.from_numpy(np.random.default_rng(6).normal(size=found.shape))
    parameters = list(encoder.parameters())
    gradients = torch.autograd.grad(found, parameters, upstream.float())
    for gradient, wanted in zip(gradients, torch.autograd.grad(expected, parameters, upstream), strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-3, atol=1e-3 * float(wanted.abs().max()))


def test_rows_without_tokens_are_computed_in_bfloat16_too() -> None:
    encoder, tokens = encoder_with(), torch.from_numpy(tokens_of(40, 5))
    expected = encoder(tokens)
    with torch.autocast("cpu", torch.bfloat16):
        found = encoder(tokens)
    assert (found - expected).abs().max() < 0.05 * expected.abs().max()


def test_an_encoder_can_be_copied_while_its_weights_are_fixed() -> None:
    encoder, tokens = encoder_with(), torch.from_numpy(tokens_of(40))
    with encoder.fixed():
        expected = encoder(tokens)
        copies = copy.deepcopy(encoder), pickle.loads(pickle.dumps(encoder))
    for other in copies:
        with other.fixed():
            assert torch.equal(other(tokens), expected)


def test_gradients_of_sums_have_gradients() -> None:
    table = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    places, ends = np.array([0, 2, 2, 3, 0], np.int32), np.array([0, 3, 3, 5], np.int32)

    def sums(table: torch.Tensor) -> torch.Tensor:
        return sums_of_rows(table.square(), places, ends)

    assert torch.autograd.gradcheck(sums, table)
    assert torch.autograd.gradgradcheck(sums, table)


def test_while_weights_are_fixed_bits_do_not_depend_on_what_was_seen_before() -> None:
    encoder, tokens = encoder_with(), torch.from_numpy(tokens_of(100, 30))
    with torch.inference_mode():
        with encoder.fixed():
            first = encoder(tokens[60:])
            encoder(tokens[:60])
            assert torch.equal(encoder(tokens)[60:], first)
        encoder.latents.neg_()
        with encoder.fixed():
            other = encoder(tokens)
        torch.testing.assert_close(other, encoder(tokens))
        encoder.latents.neg_()
        with encoder.fixed():
            assert torch.equal(encoder(tokens)[60:], first)
    assert not torch.allclose(other[60:], first)


def test_after_more_tokens_than_there_is_room_for_none_are_looked_up_until_the_next_beginning() -> None:
    random = np.random.default_rng(8)
    many = TokenSets.of(random.integers(0, 255, (100, 500, 3), np.uint8))
    few = TokenSets.of(random.integers(0, 255, (2, 500, 3), np.uint8))
    computed: list[int] = []
    table = TokenTable(1)
    for _ in range(2):
        table.begin(lambda codes, rows: computed.append(len(codes)))
        assert table.places(few) is not None
        assert table.places(many) is None
        before = len(computed)
        assert table.places(few) is None
        assert len(computed) == before


def test_tokens_may_be_more_than_are_remembered() -> None:
    space = spaces.Box(0, 255, (500, 3), np.uint8)
    torch.manual_seed(1)
    encoder = TokenEncoder(Spaces(space, spaces.Discrete(5)))
    tokens = torch.from_numpy(np.random.default_rng(7).integers(0, 255, (120, 500, 3), np.uint8))
    with torch.inference_mode():
        found = encoder(tokens)
        with encoder.fixed():
            for part in (tokens[:50], tokens, tokens[50:100]):
                fixed = encoder(part)
        torch.testing.assert_close(fixed, found[50:100], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[-1].double(), attended(encoder, tokens[-1].numpy()), rtol=1e-4, atol=1e-5)


def test_tokens_are_a_set_of_which_each_part_counts_and_missing_ones_do_not() -> None:
    torch.manual_seed(1)
    network = Tokens(SPACES, (16,)).eval()
    torch.nn.init.normal_(network.encoder.amounts.weight)
    generator = np.random.default_rng(3)
    tokens = np.full((3, 40, 3), 255, np.uint8)
    for column, limit in enumerate((220, 50, 30)):
        tokens[:, :20, column] = generator.integers(0, limit, (3, 20))
    tokens[0, 0, 0] = 254
    parameters, value = network(torch.from_numpy(tokens))
    assert (parameters.shape, value.shape) == ((3, 5), (3,))
    turned = np.concatenate([tokens[:, :20][:, ::-1], tokens[:, 20:]], axis=1)
    spread = np.concatenate([tokens[:, 20:], tokens[:, :20]], axis=1)
    for other in (turned, spread, tokens[:, :20]):
        torch.testing.assert_close(network(torch.from_numpy(other.copy()))[1], value, rtol=1e-4, atol=1e-5)
    for column in range(3):
        changed = tokens.copy()
        changed[:, 4, column] = (changed[:, 4, column].astype(int) + 1) % 16
        assert (network(torch.from_numpy(changed))[1] - value).abs().min() > 1e-6
    nothing = np.full((2, 40, 3), 255, np.uint8)
    assert torch.isfinite(network(torch.from_numpy(nothing))[1]).all()


@pytest.mark.parametrize("space", [spaces.Box(0, 255, (40, 4), np.uint8), spaces.Box(0, 1, (40, 3), np.float32)])
def test_what_is_no_tokens_is_refused(space: spaces.Box) -> None:
    with pytest.raises(NetworkError, match=r"need tokens to look at: a Box of uint8 \[tokens, 3\]"):
        Tokens(Spaces(space, spaces.Discrete(2)))
