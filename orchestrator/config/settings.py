"""The settings of a run: frozen dataclasses by subject, each field with its meaning, unit and default.

A field that may be `None` has `None` as its default, so that a TOML file, which has no null, can say
everything by leaving it out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from orchestrator.config.user_path import user_path


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectionConfig:
    """How experience is collected."""

    environments: int = 64
    """Environments stepped side by side, over all collectors."""
    collectors: int = 1
    """Worker processes that share the environments equally."""
    horizon: int = 128
    """Agent steps that each environment takes per epoch."""
    environment_options: Mapping[str, object] = field(default_factory=dict[str, object])
    """Keyword arguments for making each environment (replaces the whole table of a file)."""
    held_epochs: int = 8
    """Epochs whose experience, and policies, hooks may hold in memory at a time; further states come without."""
    mode: Literal["auto", "native", "sync"] = "auto"
    """native: the environment's own vectorised form; sync: one after another; auto: native where it exists."""
    backend: Literal["process", "inline"] = "process"
    """Where collectors and learner run: each in a process, or in threads of this one (for debugging)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LearningConfig:
    """How the policy learns from one epoch's experience."""

    update_epochs: int = 4
    """Passes over the experience of an epoch."""
    minibatches: int = 4
    """Minibatches that one pass is divided into."""
    shuffle: Literal["auto", "steps", "segments"] = "auto"
    """Minibatches hold single steps or whole segments; auto: segments for LSTM, V-trace, prioritization."""
    learning_rate: float = 2.5e-3
    """Step size of Adam at the start."""
    learning_rate_schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the learning rate goes to 0 over the run's agent steps; constant: it does not."""
    adam_betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of Adam's two running moments."""
    adam_eps: float = 1e-5
    """Added to the denominator of Adam."""
    weight_decay: float = 0.0
    """Decoupled weight decay of Adam, per step, times the learning rate."""
    max_grad_norm: float = 0.5
    """Gradients of a larger global norm are scaled down to it (inf: never)."""
    accumulate_minibatches: int = 1
    """Minibatches whose gradients are averaged into one optimizer step."""
    discount: float = 0.99
    """Weight of the next agent step's reward relative to this one's (gamma)."""
    gae_lambda: float = 0.95
    """Bias against variance of the advantages: 0 is one-step, 1 is the whole return."""
    prioritization: float = 0.0
    """Exponent of a segment's mean absolute advantage in the probability of drawing it (0: uniform)."""
    prioritization_correction: float = 1.0
    """Exponent of the importance weights that undo prioritization (1: fully, 0: not)."""
    threads: int | None = None
    """CPU threads of the learner (none: as many as a minibatch is worth, at most the cores or CPU quota there is)."""
    nonfinite: Literal["fail", "skip"] = "fail"
    """What a loss or gradient that is NaN or infinite does: end the run, or skip the optimizer step."""
    profile_epochs: tuple[int, ...] = ()
    """Epochs, from 1, that torch's profiler records into profile-<epoch>.json in the run's folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LossesConfig:
    """What is learned: the losses and their coefficients."""

    names: tuple[str, ...] = ("ppo_actor", "ppo_critic")
    """Losses to add up: ppo_actor, ppo_critic, vtrace_actor, vtrace_critic, or package.module:function."""
    clip: float = 0.2
    """PPO: distance of the probability ratio from 1 beyond which it is not rewarded."""
    value_clip: float | None = None
    """PPO: distance that a value may move from the recorded one (none: any)."""
    value_coefficient: float = 0.5
    """Weight of the value loss."""
    entropy_coefficient: float = 0.01
    """Weight of the entropy bonus."""
    target_kl: float | None = None
    """PPO: KL divergence from the behaviour policy, in nats, that ends the epoch's updates (none: never)."""
    normalize_advantage: bool = True
    """Give the advantages of each minibatch mean 0 and standard deviation 1."""
    rho_clip: float = 1.0
    """V-trace: ceiling of the importance ratio that decides which policy's value is learned."""
    c_clip: float = 1.0
    """V-trace: ceiling of the importance ratio that decides how far corrections reach back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyConfig:
    """The policy network and the normalisation around it."""

    network: str = "auto"
    """mlp, cnn, lstm, package.module:function(spaces), or auto: cnn for images, else mlp."""
    hidden: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers."""
    activation: Literal["tanh", "relu", "silu"] = "tanh"
    """Nonlinearity between the hidden layers."""
    lstm_size: int = 64
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
    every: int = 50
    """Epochs between checkpoints (0: only the final one)."""
    keep: int = 3
    """Newest checkpoints that stay on disk (0: all)."""
    keep_best: int = 0
    """Checkpoints that stay besides because their metric is best (0: none)."""
    best_metric: str | None = None
    """Metric of metrics.jsonl that says which checkpoints are best, such as rollout/recent_return."""
    best_mode: Literal["max", "min"] = "max"
    """Whether the largest or the smallest metric is best."""
    keep_every: int = 0
    """Checkpoints of every so many epochs stay besides (0: none)."""
    upload: str | None = None
    """Object store to copy them to, below the run's name: s3://bucket/..., gs://, az://, file:// (none: nowhere)."""
    wandb_project: str | None = None
    """Weights & Biases project, or entity/project, to upload them to as artifacts (none: nowhere)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationTask:
    """One environment that policies are evaluated on."""

    name: str | None = None
    """Name of its score (none: that of the environment)."""
    category: str = "tasks"
    """Tasks of one category also have a score together, the mean of theirs."""
    environment: str | None = None
    """As `environment` at the top; its spaces must be those of the training (none: the training's environment)."""
    options: Mapping[str, object] | None = None
    """Keyword arguments for making it (none: the training's for the training's environment, else no arguments)."""
    episodes: int | None = None
    """Episodes of one evaluation (none: evaluation.episodes)."""
    seed: int | None = None
    """Seed of its environments, the same for every evaluation (none: evaluation.seed)."""
    deterministic: bool | None = None
    """Take the most likely action instead of a sampled one (none: evaluation.deterministic)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationConfig:
    """Evaluation on environments of its own, beside the training."""

    every: int = 0
    """Epochs between evaluations (0: none)."""
    episodes: int = 10
    """Episodes of one evaluation."""
    environments: int = 4
    """Environments stepped side by side."""
    deterministic: bool = True
    """Take the most likely action instead of a sampled one."""
    seed: int = 1_000_000
    """Seed of the evaluation's environments, the same for every evaluation."""
    tasks: tuple[EvaluationTask, ...] = ()
    """Environments to evaluate on (none: the training's), each with settings of its own."""
    video_every: int = 0
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
    trace_megabytes: int = 20
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
    prometheus_port: int = 9464
    """Port to serve them at (0: a free one, which the log names)."""
    sinks: tuple[str, ...] = ()
    """Sinks of your own: package.module:function, called without arguments, that return one."""
    weight_norm_every: int = 10
    """Epochs between computations of the policy's norm."""
    heartbeat: float = 0.0
    """Seconds between writes of heartbeat.json into the run's folder (0: none)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerConfig:
    """Everything that defines a training run."""

    environment: str = "CartPole-v1"
    """Gymnasium id, module:id (imports the module first), or package.module:function that makes one."""
    total_agent_steps: int = 500_000
    """Agent steps to train for, over all environments."""
    seed: int = 1
    """Source of all randomness: weights, environments, actions, minibatches."""
    run_dir: Path | None = None
    """The run's folder; ~ is yours. None: runs/<environment>-<date-time> by the command, no files by a Trainer."""
    init_from: str | None = None
    """Run, checkpoint or URI of one whose policy's weights this one starts from (none: new weights)."""
    staleness: int = 1
    """Versions that the collecting policy is behind the learned one (0: collect and learn in turns)."""
    device: str = "auto"
    """Where the learner computes: cpu, cuda, cuda:<index>, mps, or auto: cuda where there is one, else cpu."""
    collection: CollectionConfig = field(default_factory=CollectionConfig)
    learning: LearningConfig = field(default_factory=LearningConfig)
    losses: LossesConfig = field(default_factory=LossesConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    checkpoints: CheckpointsConfig = field(default_factory=CheckpointsConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    metrics: MetricsConfig = field(default_factory=MetricsConfig)

    def __post_init__(self) -> None:
        if isinstance(self.run_dir, (str, Path)):  # what else there is, the checks complain about
            object.__setattr__(self, "run_dir", user_path(self.run_dir))

    @property
    def steps_per_epoch(self) -> int:
        """Agent steps that one epoch collects (fewer count where an environment spends steps on resetting)."""
        return self.collection.environments * self.collection.horizon
