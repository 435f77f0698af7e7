"""The learner: owns the live policy, the losses, the optimizer and the device; learns from one slot of experience at a
time and publishes the next version of the policy. Synchronous; runs in a worker."""

from __future__ import annotations

import pickle
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from losses import CALLBACKS, LossContext, LossSet, LossStateError, LossStatistics
from orchestrator.collection.experience_fields import observation_arrays
from orchestrator.learning.agreement import check_agreement
from orchestrator.learning.batch import add_observations, read_batches
from orchestrator.learning.default_losses import losses_of
from orchestrator.learning.device_memory import peak_memory
from orchestrator.learning.exchange import Exchange
from orchestrator.learning.gradients import GradientCheck
from orchestrator.learning.graphs import graphs_for
from orchestrator.learning.learner_state import LearnerMemory, Unsaved
from orchestrator.learning.learning_rate import LearningRate
from orchestrator.learning.loss_states import published_policy, with_experience
from orchestrator.learning.messages import EarlyReport, LearnerDescription, LearnerPlan, LearnReport, LearnRequest
from orchestrator.learning.minibatch_evaluation import MinibatchEvaluation
from orchestrator.learning.minibatch_gradient import MinibatchGradient
from orchestrator.learning.minibatch_step import MinibatchStep
from orchestrator.learning.minibatches import SegmentDraws, StepDraws, drawn_together, draws_of
from orchestrator.learning.optimization import Optimization
from orchestrator.learning.page_locked import PageLocked
from orchestrator.learning.profiling import profile_path, profiled
from orchestrator.learning.shards import ShardStatistics, Share, mean_over_shards, read_tracked
from orchestrator.learning.statistics import batch_statistics, loss_statistics, with_means_of_policies
from orchestrator.learning.threads import threads_for
from orchestrator.learning.unsaved_attributes import UnsavedAttributes
from orchestrator.policies import build_policy, check_gradients
from orchestrator.workers.current_device import make_current
from orchestrator.workers.global_generators import seed_global_generators
from orchestrator.workers.interrupt import InterruptChecks
from orchestrator.workers.slots import SlotMemory, SlotRef
from orchestrator.workers.spans import Spans
from state.frozen_mapping import FrozenMapping
from state.lent_memory import Lender
from state.parameter_arena import ParameterArena
from state.policy_point import PolicyPoint
from state.policy_snapshot import PolicySnapshot
from state.user_code import raise_failure

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence
    from pathlib import Path

    from orchestrator.learning.exchange import Meeting
    from orchestrator.learning.learner_state import LearnerState
    from orchestrator.policies import Policy
    from state.experience import ExperienceSpec
    from state.trainer_state import TrainerState


class Learner:
    """See the module. The host calls `describe`, `prepare`, `publish` once each, then `learn` for every epoch.

    Where several cells learn together, it calls `connect` first, and then the same of the learner of every cell at the
    same time. All have the same weights at every moment; the first cell's is the one that publishes and that saves.
    """

    def __init__(self, plan: LearnerPlan) -> None:
        self._plan = plan
        run, config = plan.config, plan.config.learning
        own_process = run.collection.backend == "process"
        self._device = torch.device(plan.device)
        if own_process:
            make_current(plan.device)
            seed_global_generators(run.seed)
        self.policy: Policy = build_policy(run.policy, plan.spaces, run.seed, config.discount)
        self._losses = LossSet(losses_of(plan.losses, self.policy.names))
        check_gradients(self.policy, self._losses.losses, run.policy.network)
        self._gradients = GradientCheck(self.policy, run.policy.network, self._losses.losses)
        self._unsaved = UnsavedAttributes(self.policy, run.policy.network, self._losses.members)
        self._looked_at_unsaved = False
        self.policy.to(self._device)
        self._exchange = Exchange(plan.cell, run.cells, plan.address)
        self._writes = not plan.cell or run.cluster is not None
        """Whether what the host is to know is written by this learner, to the memory of its machine."""
        self._share = Share.of(plan.cell, run.cells, run.shards)
        minibatch_steps = plan.agents * run.steps_per_epoch // config.minibatches
        torch.set_num_threads(config.threads or threads_for(self.policy, run, minibatch_steps, plan.max_threads))
        self.arena = ParameterArena(self.policy, self._device)
        shards = self._share.count
        self._statistics = LossStatistics(self._device) if run.shards == 1 else ShardStatistics(self._device, shards)
        context = LossContext(
            policy=self.policy,
            device=self._device,
            seed=run.seed,
            statistics=self._statistics,
            cell=plan.cell,
            continuous=self.policy.distribution.action_dtype.is_floating_point,
        )
        self._losses.attach(context)
        self._on_mb_end = self._losses.overriding("on_mb_end")
        self._generator = torch.Generator(self._device).manual_seed(run.seed)
        self._learning_rate = LearningRate(config.learning_rate, config.learning_rate_schedule, config.learning_rate_kl)
        self._optimization = Optimization(
            self.arena,
            betas=config.adam_betas,
            eps=config.adam_eps,
            weight_decay=config.weight_decay,
            max_grad_norm=config.max_grad_norm,
            max_minibatches=config.update_epochs * config.minibatches,
            losses=len(self._losses.losses),
            accumulate_minibatches=config.accumulate_minibatches,
        )
        self._evaluate = MinibatchEvaluation(self.policy, self.arena, run, self._device)
        gradient = MinibatchGradient(
            self._evaluate,
            self.arena,
            self._losses,
            self._gradients,
            self._optimization,
            self._statistics,
            self._exchange,
            run.policy.network,
            plan.interrupt.is_set,
        )
        parts = self.policy, self.arena, self._losses, self._optimization, self._statistics
        graphs = graphs_for(run, self._device, *parts)
        self._step = MinibatchStep(gradient, self._optimization, config.accumulate_minibatches, graphs)
        needs_segments = self.policy.recurrent or self._losses.needs_segments or config.priority_exponent > 0
        self._segments = config.shuffle == "segments" or (config.shuffle == "auto" and needs_segments)
        self._memory = LearnerMemory(
            self.policy,
            self._losses,
            self._optimization,
            self._learning_rate,
            self.arena.layout,
            self._generator,
            own_process=own_process,
        )
        if run.run_dir is not None and run.checkpoints.enabled:
            self._memory.losses_state()  # raises where no checkpoint could have it
        self._spec: ExperienceSpec | None = None
        self._locked = PageLocked(self._device)
        self._slots = SlotMemory(self._locked.lock)
        self._lender = Lender()
        self._learning: Generator[EarlyReport, None, LearnReport] | None = None

    # What the host asks for.

    def describe(self) -> LearnerDescription:
        return LearnerDescription(
            layout=self.arena.layout,
            fields=self._losses.experience_fields(),
            callbacks=frozenset(name for name in CALLBACKS if self._losses.overriding(name)),
            recurrent_state_size=self.policy.state_size if self.policy.recurrent else 0,
            moments_nbytes=self._optimization.moments_nbytes,
            device=str(self._device),
            device_nbytes=peak_memory(self._device),
        )

    def await_others(self) -> Meeting:
        """As `Exchange.await_others`."""
        return self._exchange.await_others(self._plan.config.cell_timeout)

    def connect(self, meeting: Path | Meeting) -> None:
        """Find the learners of the other cells, as `Exchange.connect`."""
        self._exchange.connect(meeting, self._plan.config.cell_timeout)

    def prepare(self, spec: ExperienceSpec) -> float:
        """Take the layout of the experience slots, and try out the network; the seconds that it took to compile it.
        Raises NetworkError and CompilationError where it can't be computed as the settings want it."""
        self._spec = spec
        segments = spec.segments // (self._share.shards * self._plan.config.learning.minibatches)
        return self._evaluate.try_out((segments, spec.horizon) if self._segments else (segments * spec.horizon,))

    def close(self) -> None:
        """At the end of the worker."""
        self._evaluate.precision.close()
        self._locked.close()

    def publish(self, ref: SlotRef) -> None:
        """Copy the live policy into a slot, in the first cell of each machine."""
        memory = self._slots.memory(ref)  # in every cell, to know it when it is referred to again
        if self._writes:
            self.arena.write_to(memory)

    def state(self, moments: SlotRef) -> LearnerState | Unsaved:
        """The state between two epochs; the moments go to a slot, in the first cell of each machine."""
        carry = self._memory.reward_carry
        carry, memory = carry if carry is None else self._exchange.gather(carry), self._bytes(moments)
        unsaved = Unsaved("the first cell's learner is the one that saves")
        try:
            state = replace(self._memory.write(memory), reward_carry=carry) if self._writes else unsaved
        except LossStateError as error:
            return Unsaved(str(error))
        return unsaved if self._exchange.cell else state

    def kept_state(self, moments: SlotRef) -> bytes | Unsaved:
        """`state`, pickled: the host, which is to do little, only looks into it when it replaces a learner."""
        state = self.state(moments)
        return state if isinstance(state, Unsaved) else pickle.dumps(state)

    def restore(self, policy: SlotRef, moments: SlotRef | None, state: LearnerState | None) -> None:
        """Go on from a policy, and from what was learner_state with it (None: with a new optimizer)."""
        self.arena.read_from(self._slots.memory(policy))
        if moments is not None and state is not None:
            if state.reward_carry is not None:
                rows = state.reward_carry.chunk(self._exchange.cells)[self._exchange.cell]
                state = replace(state, reward_carry=rows)
            self._memory.restore(self._bytes(moments), state)

    def callback(self, name: str, state: TrainerState) -> None:
        """Call the losses' callbacks of one name."""
        for callback in self._losses.overriding(name):
            callback(state)

    def learn(self, request: LearnRequest) -> LearnReport | EarlyReport:
        """One epoch, or its beginning, which `learn_on` goes on with, where the policy is to be published early.

        Raises NonFiniteLossError naming epoch, loss and minibatch.
        """
        self._learning = self._learn(request)
        return self.learn_on()

    def learn_on(self) -> LearnReport | EarlyReport:
        """Go on with an epoch after an EarlyReport of it."""
        assert self._learning is not None, "learn() comes before learn_on()"
        try:
            return next(self._learning)
        except StopIteration as end:
            self._lender.settle()  # a loss may have kept a state, but the slots are used again
            return end.value
        except BaseException:
            self._exchange.leave()
            self._losses.abandon_epoch()
            raise

    def _learn(self, request: LearnRequest) -> Generator[EarlyReport, None, LearnReport]:
        config, epoch = self._plan.config, request.state.epoch + 1
        if config.run_dir is None or epoch not in config.learning.profile_epochs or self._exchange.cell:
            return (yield from self._learn_from(request))
        with profiled(profile_path(config.run_dir, epoch), self._plan.device):
            return (yield from self._learn_from(request))

    def _learn_from(self, request: LearnRequest) -> Generator[EarlyReport, None, LearnReport]:
        if not self._looked_at_unsaved and self._plan.config.run_dir is not None:
            self._unsaved.changed()
            self._looked_at_unsaved = True
        began = time.monotonic()
        self._exchange.seconds, self._exchange.sent = 0.0, 0
        spans = Spans(self._plan.config.metrics.trace)
        config = self._plan.config.learning
        state = request.state
        assert self._spec is not None, "prepare() comes before learn()"
        if any(self._losses.overriding(name) for name in CALLBACKS):
            view = self._lender.view(self._slots.buffer(request.experience))
            state = with_experience(request, self._plan.config, self._exchange.cell, self._spec, view)
        epoch = state.epoch
        losses = self._losses.active(epoch)
        arrays = self._share.cut(self._spec.arrays(self._slots.memory(request.experience)))
        stale = request.behavior < PolicyPoint(epoch)
        try:
            with self._evaluate.precision.on_network:
                batches = read_batches(
                    arrays, self.policy, self._device, self._plan.config, stale=stale, gather=self._exchange.gather
                )
        except BaseException as error:
            raise_failure(error, f"the network {self._plan.config.policy.network!r} in epoch {epoch + 1}")
        if request.rollout_start is not None:
            self.callback("on_rollout_start", request.rollout_start)
        self.callback("on_rollout_end", state)

        self._losses.begin_epoch()
        self._gradients.begin_epoch(epoch, losses)
        progress = request.steps_before / self._plan.config.total_agent_steps
        rate = self._learning_rate.at(progress, request.learning_rate_scale)
        self._optimization.begin_epoch(rate)
        batches = self._step.begin_epoch(batches)
        draws = self._draws(batches, epoch)
        spans.end("prepare")
        done = passes = 0
        finished, interrupted = not losses, False
        checks = InterruptChecks(self._plan.interrupt.is_set)
        while passes < config.update_epochs and not finished:
            for mb_idx, together in enumerate(drawn_together(draws, of_run=self._share.shards)):
                stopped, ended = self._step.learn(together, epoch, passes, mb_idx, first=not done)
                done += 1
                for callback in self._on_mb_end:
                    callback(replace(state, update_epoch=passes, mb_idx=mb_idx))
                spans.end("minibatch", passes, mb_idx)
                if done == request.early_minibatches and request.early_to is not None:
                    yield self._publish_early(request.early_to)
                    spans.end("publish early", passes)
                if self._share.shards > 1:
                    checks()
                    interrupted, finished = ended, ended or stopped
                else:
                    interrupted = checks()
                    finished = interrupted or self._losses.stop_requested
                if finished:
                    break
            self._step.end_pass()
            passes += 1
        if done < request.early_minibatches and request.early_to is not None:
            yield self._publish_early(request.early_to)
        age = (epoch - request.behavior.version) * self._plan.config.minibatches_per_epoch
        loss_stats = {"learning_rate": rate, "policy_age": float(age - request.behavior.minibatches)}
        loss_stats |= self._loss_stats(epoch, rate, batches) | self._step.statistics
        peak = peak_memory(self._device)
        loss_stats |= {} if peak is None else {"device_memory_peak": float(peak)}
        spans.end("statistics")
        state = replace(state, update_epoch=passes, mb_idx=done)
        self.callback("on_train_phase_end", state)
        add_observations(self.policy, batches, self._exchange.gather)
        check_agreement(self.arena, self._exchange, self._plan.config.policy.network, epoch)
        spans.end("normalizers")
        self.publish(request.publish_to)
        spans.end("publish")
        ended, exchanging, sent = time.monotonic(), self._exchange.seconds, self._exchange.sent

        # Also what the callbacks of the training phase have tracked.
        loss_stats |= read_tracked(self._statistics, self._exchange)
        loss_stats = with_means_of_policies(loss_stats, self.policy.names)
        self._learning_rate.learned(loss_stats)
        if self._losses.overriding("on_epoch_end"):
            state = replace(
                state,
                epoch=epoch + 1,
                policy_version=request.version,
                loss_stats=FrozenMapping(loss_stats),
                policy=self._snapshot(request),
            )
            self.callback("on_epoch_end", state)
            self.publish(request.publish_to)  # again, since a loss may have changed it
        warnings = {**self._gradients.warnings, **self._learning_rate.warnings, **self._step.warnings}
        warnings |= {**self._locked.warnings, **self._exchange.warnings}
        learner_state = None
        if request.moments_to is not None:
            learner_state = self.state(request.moments_to)
            warnings |= self._unsaved.changed()
        kept_state = None if request.keep_to is None else self.kept_state(request.keep_to)
        checks()
        return LearnReport(
            loss_stats=loss_stats,
            update_epochs=passes,
            minibatches=done,
            began=began,
            ended=ended,
            interrupted=interrupted,
            exchange_seconds=exchanging,
            exchange_bytes=sent,
            spans=spans.recorded,
            learner_state=learner_state,
            kept_state=kept_state,
            longest_step=checks.longest,
            warnings=warnings,
        )

    def _publish_early(self, ref: SlotRef) -> EarlyReport:
        began = time.monotonic()
        self.publish(ref)
        return EarlyReport(began, time.monotonic())

    def _bytes(self, ref: SlotRef) -> Tensor:
        memory = np.frombuffer(self._slots.memory(ref), dtype=np.uint8, count=self._optimization.moments_nbytes)
        return torch.from_numpy(memory)

    def _draws(self, batches: Sequence[dict[str, Tensor]], epoch: int) -> list[SegmentDraws | StepDraws]:
        """What the minibatches are made of, in each shard."""
        assert self._spec is not None
        generators = [self._generator]
        if self._share.shards > 1:
            generators = self._share.generators(self._plan.config.seed, epoch, self._device)
        per_segment = None if self._segments else {spec.name for spec in self._spec.fields if spec.per == "segment"}
        sources, fixed_size = self._step.sources(batches), self._step.fixed_size
        own = [self.policy.rows_of_policies(observation_arrays(batch)) for batch in batches]
        return [
            draws_of(batch, self._plan.config.learning, generator, tuple(rows.values()), per_segment, fixed_size)
            for batch, generator, rows in zip(sources, generators, own, strict=True)
        ]

    def _loss_stats(self, epoch: int, rate: float, batches: Sequence[dict[str, Tensor]]) -> dict[str, float]:
        """At the end of the epoch, when the host of the device may wait for it."""
        stats = loss_statistics(
            self._optimization.read_log().numpy(),
            [loss.name for loss in self._losses.active(epoch)],
            epoch=epoch,
            rate=rate,
            learning=self._plan.config.learning,
        )
        of_batches = [batch_statistics(one, self.policy.rows_of_policies(observation_arrays(one))) for one in batches]
        return stats | mean_over_shards(self._exchange.gather_values(of_batches))

    def _snapshot(self, request: LearnRequest) -> PolicySnapshot:
        view = self._lender.view(self._slots.buffer(request.publish_to))
        return published_policy(self._plan.config, self._plan.spaces, request.version, self.arena.layout, view)
