from __future__ import annotations

import pytest
import torch

from orchestrator.learning.minibatches import Draw, Rows, SegmentDraws, StepDraws

SEGMENTS, HORIZON = 6, 5


def batch() -> dict[str, torch.Tensor]:
    step = torch.arange(SEGMENTS * HORIZON).view(SEGMENTS, HORIZON)
    return {"step": step, "pair": torch.stack([step, -step], dim=2), "advantage": step.float()}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def one_pass(draws: StepDraws | SegmentDraws) -> list[Draw]:
    return [draw for draw in draws.one_pass() if draw is not None]


def test_a_pass_over_steps_visits_each_valid_step_once_and_no_other() -> None:
    valid = torch.ones(SEGMENTS, HORIZON, dtype=torch.bool)
    valid[1, 3] = valid[5, 4] = False
    draws = StepDraws(batch(), valid, 4, generator())
    for _ in range(2):
        minibatches = one_pass(draws)
        seen = torch.cat([draw.fields["step"] for draw in minibatches])
        assert sorted(seen.tolist()) == batch()["step"][valid].tolist()
        assert [len(draw.fields["step"]) for draw in minibatches] == [7, 7, 7, 7]


def test_minibatches_of_fixed_size_have_the_same_steps_and_others_that_do_not_count() -> None:
    valid = torch.ones(SEGMENTS, HORIZON, dtype=torch.bool)
    valid[0, 0] = valid[1, 3] = valid[5, 4] = False
    plain, fixed = (one_pass(StepDraws(batch(), valid, 3, generator(), fixed_size=one)) for one in (False, True))
    for draw, filled in zip(plain, fixed, strict=True):
        assert draw.valid is None
        assert filled.valid is not None
        assert len(filled.valid) == len(filled.fields["step"]) == 10
        assert torch.equal(filled.fields["step"][filled.valid], draw.fields["step"])
        assert valid.flatten()[filled.fields["step"]].all()
    valid[:] = True
    (whole, *_) = one_pass(StepDraws(batch(), valid, 3, generator(), fixed_size=True))
    assert whole.valid is None


def test_the_fields_of_a_minibatch_belong_to_the_same_steps() -> None:
    valid = torch.ones(SEGMENTS, HORIZON, dtype=torch.bool)
    draws = one_pass(StepDraws(batch(), valid, 3, generator()))
    assert len(draws) == 3
    for draw in draws:
        assert torch.equal(draw.fields["pair"], torch.stack([draw.fields["step"], -draw.fields["step"]], dim=1))


def test_two_passes_have_different_orders_and_the_same_seed_the_same_ones() -> None:
    valid = torch.ones(SEGMENTS, HORIZON, dtype=torch.bool)

    def orders(seed: int) -> list[list[int]]:
        draws = StepDraws(batch(), valid, 1, generator(seed))
        return [one_pass(draws)[0].fields["step"].tolist() for _ in range(2)]

    first, second = orders(1)
    assert first != second
    assert orders(1) == [first, second]
    assert orders(2) != [first, second]


def test_a_pass_over_segments_keeps_their_order_in_time_and_their_mask() -> None:
    valid = torch.ones(SEGMENTS, HORIZON, dtype=torch.bool)
    valid[2, 4] = False
    rows: list[int] = []
    for draw in one_pass(SegmentDraws(batch(), valid, 3, generator())):
        step = draw.fields["step"]
        assert torch.equal(step[:, 1:] - step[:, :-1], torch.ones(2, HORIZON - 1, dtype=torch.int64))
        assert draw.valid is not None
        segments = step[:, 0] // HORIZON
        assert torch.equal(draw.valid, valid[segments])
        assert draw.weight is None
        rows += segments.tolist()
    assert sorted(rows) == list(range(SEGMENTS))


@pytest.mark.parametrize("priority", [None, 0.0, 1.0])
def test_every_minibatch_has_its_share_of_the_rows_of_each_policy_one_after_another(priority: float | None) -> None:
    valid = torch.ones(SEGMENTS, HORIZON, dtype=torch.bool)
    valid[1, 3:] = valid[4, 2] = False
    of_first, of_second = torch.tensor([0, 1, 3, 5]), torch.tensor([2, 4])
    if priority is None:
        draws = one_pass(StepDraws(batch(), valid, 2, generator(), (of_first, of_second)))
        assert [draw.counts for draw in draws] == [(9, 5), (9, 4)]
    else:
        both = of_first, of_second
        draws = one_pass(SegmentDraws(batch(), valid, 2, generator(), both, priority_exponent=priority))
        assert [draw.counts for draw in draws] == [(2, 1), (2, 1)]
    seen: list[int] = []
    for draw in draws:
        segments = draw.fields["step"].flatten() // HORIZON
        steps = draw.fields["step"][0].numel()
        first, second = segments.split([count * steps for count in draw.counts])
        assert set(first.tolist()) <= {0, 1, 3, 5}
        assert set(second.tolist()) <= {2, 4}
        assert (draw.weight is not None) == bool(priority)
        if draw.weight is not None:
            assert len(draw.weight) == sum(draw.counts)
        seen += draw.fields["step"].flatten().tolist()
    if priority is None:
        assert sorted(seen) == batch()["step"][valid].tolist()
    elif not priority:
        assert sorted(seen) == list(range(SEGMENTS * HORIZON))


def test_a_policy_with_fewer_rows_than_there_are_minibatches_is_in_some_of_them() -> None:
    valid = torch.zeros(SEGMENTS, HORIZON, dtype=torch.bool)
    valid[:3], valid[4, :2] = True, True
    draws = StepDraws(batch(), valid, 5, generator(), (torch.tensor([0, 1, 2]), torch.tensor([3, 4, 5])))
    assert [draw.counts for draw in one_pass(draws)] == [(3, 1), (3, 1), (3, 0), (3, 0), (3, 0)]


@pytest.mark.slow
def test_prioritised_segments_are_drawn_by_the_size_of_their_advantages_and_weighted_back() -> None:
    fields = batch()
    fields["advantage"] = torch.ones(SEGMENTS, HORIZON)
    fields["advantage"][3] = -15.0
    valid = torch.ones(SEGMENTS, HORIZON, dtype=torch.bool)
    draws = SegmentDraws(fields, valid, 1, generator(), priority_exponent=1.0)
    counts, weighted = torch.zeros(SEGMENTS), torch.zeros(SEGMENTS)
    for _ in range(2000):
        draw = one_pass(draws)[0]
        segments = draw.fields["step"][:, 0] // HORIZON
        assert draw.weight is not None
        counts.index_add_(0, segments, torch.ones(len(segments)))
        weighted.index_add_(0, segments, draw.weight[:, 0])
    torch.testing.assert_close(counts / counts.sum(), torch.tensor([1, 1, 1, 15, 1, 1]) / 20, atol=0.01, rtol=0.0)
    torch.testing.assert_close(weighted / weighted.sum(), torch.full((SEGMENTS,), 1 / 6), atol=0.02, rtol=0.0)


def test_only_the_fields_that_are_asked_for_are_taken() -> None:
    rows = Rows(batch(), torch.tensor([0, 2]))
    taken = rows["step"]
    assert rows["step"] is taken
    assert list(rows) == ["step", "pair", "advantage"]
    assert len(rows) == 3
    with pytest.raises(KeyError):
        rows["no such field"]
