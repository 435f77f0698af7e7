"""The settings of a run: frozen dataclasses by subject. All that is to be said of a setting stands at its field: type,
default, meaning and unit, what it may be, whether it may change on resume, whether it names code.

A field that may be `None` has `None` as its default, so that a TOML file, which has no null, can say
everything by leaving it out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from orchestrator.config.annotations import (
    MAY_CHANGE,
    NO_CODE,
    Admits,
    CalledElsewhere,
    Count,
    Environment,
    Formerly,
    Fraction,
    NamesCode,
    NotNegative,
    Period,
    Positive,
    PositiveOrInfinite,
    Seed,
    each,
    named,
)
from orchestrator.config.former_names import accepts_former_names
from orchestrator.config.user_path import user_path

NETWORKS = ("auto", "mlp", "cnn", "lstm")
LOSSES = ("ppo_actor", "ppo_critic", "vtrace_actor", "vtrace_critic")

_DECAY_RATES = each("two numbers, each 0 or above and below 1", lambda beta: 0 <= beta < 1)
_EPOCHS = each("epochs of at least 1", lambda epoch: epoch >= 1)
_WIDTHS = each("widths of at least 1", lambda width: width >= 1)
_EACH_ONCE = Admits("at least one loss, and each once", lambda names: 0 < len(names) == len(set(names)))
_NAME, _WEIGHTS = named("a name"), named("a run's folder, a checkpoint, or the URI of one")
_PORT = Admits("0 (any free one) to 65535", lambda port: 0 <= port < 65536)
_DEVICE = Admits(
    "auto, cpu, cuda, cuda:<index> or mps",
    lambda device: re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", device) is not None,
    cure="set it to auto, which leaves the choice to the run",
)


@accepts_former_names
@dataclass(frozen=True, slots=True, kw_only=True)
class CollectionConfig:
    """How experience is collected."""

    num_environments: Annotated[Count, Formerly("environments"), CalledElsewhere("num_envs", "n_envs")] = 64
    """Environments stepped side by side, over all collectors."""
    collectors: Annotated[Count, MAY_CHANGE] = 1
    """Worker processes that share the environments equally."""
    horizon: Annotated[Count, CalledElsewhere("n_steps", "num_steps", "rollout_length")] = 128
    """Agent steps that each environment takes per epoch."""
    environment_options: Mapping[str, object] = field(default_factory=dict[str, object])
    """Keyword arguments for making each environment (replaces the whole table of a file)."""
    held_epochs: Annotated[Count, MAY_CHANGE] = 8
    """Epochs whose experience, and policies, hooks may hold in memory at a time; further states come without."""
    mode: Literal["auto", "native", "sync"] = "auto"
    """native: the environment's own vectorised form; sync: one after another; auto: native where it exists."""
    backend: Annotated[Literal["process", "inline"], MAY_CHANGE] = "process"
    """Where collectors and learner run: each in a process, or in threads of this one (for debugging)."""


@accepts_former_names
@dataclass(frozen=True, slots=True, kw_only=True)
class LearningConfig:
    """How the policy learns from one epoch's experience."""

    update_epochs: Annotated[Count, CalledElsewhere("n_epochs", "num_epochs")] = 4
    """Passes over the experience of an epoch."""
    minibatches: Annotated[Count, CalledElsewhere("num_minibatches", "batch_size", "minibatch_size")] = 4
    """Minibatches that one pass is divided into."""
    shuffle: Literal["auto", "steps", "segments"] = "auto"
    """Minibatches hold single steps or whole segments; auto: segments for LSTM, V-trace, prioritization."""
    learning_rate: Annotated[Positive, CalledElsewhere("lr")] = 2.5e-3
    """Step size of Adam at the start."""
    learning_rate_schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the learning rate goes to 0 over the run's agent steps; constant: it does not."""
    adam_betas: Annotated[tuple[float, float], _DECAY_RATES] = (0.9, 0.999)
    """Decay rates of Adam's two running moments."""
    adam_eps: Positive = 1e-5
    """Added to the denominator of Adam."""
    weight_decay: NotNegative = 0.0
    """Decoupled weight decay of Adam, per step, times the learning rate."""
    max_grad_norm: PositiveOrInfinite = 0.5
    """Gradients of a larger global norm are scaled down to it (inf: never)."""
    accumulate_minibatches: Count = 1
    """Minibatches whose gradients are averaged into one optimizer step."""
    discount: Annotated[Fraction, CalledElsewhere("gamma")] = 0.99
    """Weight of the next agent step's reward relative to this one's (gamma)."""
    gae_lambda: Fraction = 0.95
    """Bias against variance of the advantages: 0 is one-step, 1 is the whole return."""
    priority_exponent: Annotated[NotNegative, Formerly("prioritization")] = 0.0
    """Exponent of a segment's mean absolute advantage in the probability of drawing it (0: uniform)."""
    priority_correction: Annotated[Fraction, Formerly("prioritization_correction")] = 1.0
    """Exponent of the importance weights that undo prioritization (1: fully, 0: not)."""
    refresh: bool = True
    """With staleness: take values, and what PPO clips against, from the policy as it is when learning begins."""
    threads: Annotated[Count | None, MAY_CHANGE] = None
    """CPU threads of the learner (none: as many as a minibatch is worth, at most the cores or CPU quota there is)."""
    nonfinite: Literal["fail", "skip"] = "fail"
    """What a loss or gradient that is NaN or infinite does: end the run, or skip the optimizer step."""
    profile_epochs: Annotated[tuple[int, ...], _EPOCHS, MAY_CHANGE] = ()
    """Epochs, from 1, that torch's profiler records into profile-<epoch>.json in the run's folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LossesConfig:
    """What is learned: the losses and their coefficients."""

    names: Annotated[tuple[str, ...], _EACH_ONCE, NamesCode(LOSSES)] = ("ppo_actor", "ppo_critic")
    """Losses to add up: ppo_actor, ppo_critic, vtrace_actor, vtrace_critic, or package.module:function."""
    clip: Annotated[Positive, CalledElsewhere("clip_range", "clip_coef", "clip_epsilon")] = 0.2
    """PPO: distance of the probability ratio from 1 beyond which it is not rewarded."""
    value_clip: Positive | None = None
    """PPO: distance that a value may move from where the epoch's learning began (none: any)."""
    value_coefficient: Annotated[NotNegative, CalledElsewhere("vf_coef", "value_coef")] = 0.5
    """Weight of the value loss."""
    entropy_coefficient: Annotated[NotNegative, CalledElsewhere("ent_coef", "entropy_coef")] = 0.01
    """Weight of the entropy bonus."""
    target_kl: Positive | None = None
    """PPO: KL divergence from the policy at the epoch's start, in nats, that ends its updates (none: never)."""
    normalize_advantage: bool = True
    """Give the advantages of each minibatch mean 0 and standard deviation 1."""
    rho_clip: Positive = 1.0
    """V-trace: ceiling of the importance ratio that decides which policy's value is learned."""
    staleness_clip: Positive | None = None
    """PPO: ceiling of the importance weights that correct for an older acting policy (none: no weights)."""
    c_clip: Positive = 1.0
    """V-trace: ceiling of the importance ratio that decides how far corrections reach back."""


@accepts_former_names
@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyConfig:
    """The policy network and the normalisation around it."""

    network: Annotated[str, NamesCode(NETWORKS, arguments=1)] = "auto"
    """mlp, cnn, lstm, package.module:function(spaces), or auto: cnn for images, else mlp."""
    hidden_sizes: Annotated[tuple[int, ...], _WIDTHS, Formerly("hidden")] = (64, 64)
    """Widths of the hidden layers."""
    activation: Literal["tanh", "relu", "silu"] = "tanh"
    """Nonlinearity between the hidden layers."""
    lstm_size: Count = 64
    """Width of the recurrent state of lstm."""
    normalize_observations: bool = False
    """Shift and scale observations (not images) to running mean 0 and standard deviation 1."""
    normalize_rewards: bool = False
    """Divide rewards by the running standard deviation of the discounted return."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointsConfig:
    """When checkpoints are written and how many stay."""

    enabled: bool = True
    """Write checkpoints, at the latest at the end of the run."""
    every: Period = 50
    """Epochs between checkpoints (0: only the final one)."""
    keep: Period = 3
    """Newest checkpoints that stay on disk (0: all)."""
    keep_best: Period = 0
    """Further checkpoints that stay because their metric is best (0: none)."""
    best_metric: str | None = None
    """Metric of metrics.jsonl that says which checkpoints are best, such as rollout/recent_return."""
    best_mode: Literal["max", "min"] = "max"
    """Whether the largest or the smallest metric is best."""
    keep_every: Period = 0
    """Further checkpoints that stay, of every so many epochs (0: none)."""
    upload: str | None = None
    """Object store to copy them to, below the run's name: s3://bucket/..., gs://, az://, file:// (none: nowhere)."""
    wandb_project: str | None = None
    """Weights & Biases project, or entity/project, to upload them to as artifacts (none: nowhere)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationTask:
    """One environment that policies are evaluated on."""

    name: Annotated[str, _NAME, NO_CODE] | None = None
    """Name of its score (none: that of the environment)."""
    category: Annotated[str, _NAME, NO_CODE] = "tasks"
    """Tasks of one category also have a score together, the mean of theirs."""
    environment: Environment | None = None
    """As `environment` at the top; its spaces must be those of the training (none: the training's environment)."""
    options: Mapping[str, object] | None = None
    """Keyword arguments for making it (none: the training's for the training's environment, else no arguments)."""
    episodes: Count | None = None
    """Episodes of one evaluation (none: evaluation.episodes)."""
    seed: Seed | None = None
    """Seed of its environments, the same for every evaluation (none: evaluation.seed)."""
    deterministic: bool | None = None
    """Take the most likely action instead of a sampled one (none: evaluation.deterministic)."""


@accepts_former_names
@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationConfig:
    """Evaluation on separate environments, alongside the training."""

    every: Period = 0
    """Epochs between evaluations (0: none)."""
    episodes: Count = 10
    """Episodes of one evaluation."""
    num_environments: Annotated[Count, Formerly("environments")] = 4
    """Environments stepped side by side."""
    deterministic: bool = True
    """Take the most likely action instead of a sampled one."""
    seed: Seed = 1_000_000
    """Seed of the evaluation's environments, the same for every evaluation."""
    tasks: tuple[EvaluationTask, ...] = ()
    """Environments to evaluate on (none: the training's), each with its own settings."""
    video_every: Period = 0
    """Epochs between evaluations that also record an episode of each task as a video (0: none)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsConfig:
    """What the run reports about itself."""

    progress: Literal["auto", "live", "plain", "off"] = "auto"
    """Progress on the terminal: a live view, plain lines, nothing; auto: live where it can be shown."""
    jsonl: bool = True
    """Write metrics.jsonl into the run's folder, one object per epoch."""
    trace: bool = False
    """Write trace.json into the run's folder: what every process did when, for Perfetto."""
    trace_megabytes: Count = 20
    """Size that trace.json may reach; before that it leaves out more and more epochs."""
    tensorboard: bool = False
    """Write TensorBoard events into the run's folder (extra tensorboard)."""
    wandb: Literal["off", "online", "offline"] = "off"
    """Log to Weights & Biases: uploading, or into the run's folder for wandb sync (extra wandb)."""
    wandb_project: str | None = None
    """W&B project (none: what W&B itself is configured to)."""
    prometheus: bool = False
    """Serve the newest metrics over HTTP for Prometheus (extra prometheus)."""
    prometheus_host: str = "127.0.0.1"
    """Address to serve them at; the default can be reached from this machine only."""
    prometheus_port: Annotated[int, _PORT] = 9464
    """Port to serve them at (0: a free one, which the log names)."""
    sinks: Annotated[tuple[str, ...], NamesCode(function="a function without arguments that returns a sink")] = ()
    """Sinks of your own: package.module:function, called without arguments, that return one."""
    weight_norm_every: Count = 10
    """Epochs between computations of the policy's norm."""
    heartbeat: NotNegative = 0.0
    """Seconds between writes of heartbeat.json into the run's folder (0: none)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerConfig:
    """Everything that defines a training run."""

    environment: Annotated[Environment, CalledElsewhere("env", "env_id", "env_name")] = "CartPole-v1"
    """Gymnasium id, module:id (imports the module first), or package.module:function that makes one."""
    total_agent_steps: Annotated[Count, MAY_CHANGE, CalledElsewhere("total_timesteps", "steps")] = 500_000
    """Agent steps to train for, over all environments."""
    seed: Seed = 1
    """Source of all randomness: weights, environments, actions, minibatches."""
    run_dir: Annotated[Path | None, MAY_CHANGE] = None
    """The run's folder; ~ is yours. None: runs/<environment>-<date-time> by the command, no files by a Trainer."""
    init_from: Annotated[str, _WEIGHTS] | None = None
    """Run, checkpoint or URI of one whose policy's weights this one starts from (none: new weights)."""
    staleness: Period = 1
    """Versions that the collecting policy is behind the learned one (0: collect and learn in turns)."""
    device: Annotated[str, _DEVICE, NO_CODE, MAY_CHANGE] = "auto"
    """Where the learner computes: cpu, cuda, cuda:<index>, mps, or auto: cuda where there is one, else cpu."""
    collection: CollectionConfig = field(default_factory=CollectionConfig)
    learning: LearningConfig = field(default_factory=LearningConfig)
    losses: LossesConfig = field(default_factory=LossesConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    checkpoints: Annotated[CheckpointsConfig, MAY_CHANGE] = field(default_factory=CheckpointsConfig)
    evaluation: Annotated[EvaluationConfig, MAY_CHANGE] = field(default_factory=EvaluationConfig)
    metrics: Annotated[MetricsConfig, MAY_CHANGE] = field(default_factory=MetricsConfig)

    def __post_init__(self) -> None:
        if isinstance(self.run_dir, (str, Path)):  # what else there is, the checks complain about
            object.__setattr__(self, "run_dir", user_path(self.run_dir))

    @property
    def refreshes(self) -> bool:
        """Whether batches that an older policy collected are evaluated anew before they are learned from."""
        return self.staleness > 0 and self.learning.refresh

    @property
    def steps_per_epoch(self) -> int:
        """Agent steps that one epoch collects (fewer count where an environment spends steps on resetting)."""
        return self.collection.num_environments * self.collection.horizon
