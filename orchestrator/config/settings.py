"""The settings of a run: frozen dataclasses by subject. All that is to be said of a setting stands at its field: type,
default, meaning and unit, what it may be, whether it may change on resume, whether it names code. A field that may be
`None` has `None` as its default, so that a TOML file, which has no null, can say everything by leaving it out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

from orchestrator.config.annotations import (
    MAY_CHANGE,
    NO_CODE,
    Admits,
    CalledElsewhere,
    ClusterAddress,
    Count,
    Device,
    Environment,
    Formerly,
    Fraction,
    NamesCode,
    NotNegative,
    Period,
    Positive,
    PositiveOrInfinite,
    PowerOfTwo,
    Seed,
    each,
    named,
)
from orchestrator.config.former_names import accepts_former_names
from orchestrator.config.user_path import is_text, user_path

NETWORKS = ("auto", "mlp", "cnn", "lstm", "tokens", "tokens_lstm")
LOSSES = ("ppo_actor", "ppo_critic", "vtrace_actor", "vtrace_critic")

_DECAY_RATES = each("two numbers, each 0 or above and below 1", lambda beta: 0 <= beta < 1)
_COUNTS = each("each at least 1", lambda value: value >= 1)
_EACH_ONCE = Admits("at least one loss, and each once", lambda names: 0 < len(names) == len(set(names)))
_EACH_TYPE_ONCE = Admits(
    "each type once",
    lambda policies: len({one.type for one in policies}) == len(policies),
    cure="join those of one type",
)
_NAME, _WEIGHTS = named("a name"), named("a run's folder, a checkpoint, or the URI of one")
_WRAPPER = "a function that takes an environment and returns it wrapped"
_TYPE, _MASK = named("a type of agents"), named("a key of the observations, or info/<key>")
_PORT = Admits("0 (any free one) to 65535", lambda port: 0 <= port < 65536)
_HOOK, _SINK = (f"a function without arguments that returns a {what}" for what in ("hook", "sink"))
_PATH = Admits("a path that can be written as text", lambda path: path is None or is_text(str(path)))


@accepts_former_names
@dataclass(frozen=True, slots=True, kw_only=True)
class CollectionConfig:
    """How experience is collected."""

    num_environments: Annotated[Count, Formerly("environments"), CalledElsewhere("num_envs", "n_envs")] = 64
    """Number of environments, over all collectors."""
    collectors: Annotated[Count, MAY_CHANGE] = 1
    """Worker processes that share the environments equally."""
    environment_workers: Annotated[Period, MAY_CHANGE] = 0
    """Processes of each collector that step its environments (0: the collector itself does)."""
    environment_groups: Annotated[Count, MAY_CHANGE] = 1
    """Groups that each collector's environments form: while one steps, the policy acts for the next."""
    step_timeout: Annotated[NotNegative, MAY_CHANGE] = 0.0
    """Seconds that a step or reset may take in an environment worker before that is replaced (0: any time)."""
    horizon: Annotated[Count, CalledElsewhere("n_steps", "num_steps", "rollout_length")] = 32
    """Steps that each environment takes per epoch: as many agent steps, for each of its agents."""
    environment_options: Mapping[str, object] = field(default_factory=dict[str, object])
    """Keyword arguments for making each environment (replaces the whole table of a file)."""
    held_epochs: Annotated[Count, MAY_CHANGE] = 8
    """Epochs whose experience and policies hooks may keep in memory at once; beyond that, states come without them."""
    mode: Literal["auto", "native", "sync"] = "auto"
    """native: the environment's own vectorized form; sync: one after another; auto: native where it exists."""
    device: Annotated[Device, MAY_CHANGE] = "auto"
    """Where the policy acts, in each collector; auto: where it learns if it observes images, else on the CPU."""
    graphs: Annotated[bool | Literal["auto"], MAY_CHANGE] = "auto"
    """Record what the policy does in a step as a CUDA graph, and replay it; auto: if it acts on a CUDA device."""
    backend: Annotated[Literal["process", "inline"], MAY_CHANGE] = "process"
    """Where collectors and learner run: each in a process, or in threads of this one (for debugging)."""


@accepts_former_names
@dataclass(frozen=True, slots=True, kw_only=True)
class LearningConfig:
    """How the policy learns from one epoch's experience."""

    update_epochs: Annotated[Count, CalledElsewhere("n_epochs", "num_epochs")] = 4
    """Passes over an epoch's experience."""
    minibatches: Annotated[Count, CalledElsewhere("num_minibatches", "batch_size", "minibatch_size")] = 8
    """Minibatches that each pass is divided into."""
    shuffle: Literal["auto", "steps", "segments"] = "auto"
    """Whether minibatches hold single steps or whole segments; auto: segments for LSTM, V-trace and prioritization."""
    learning_rate: Annotated[Positive, CalledElsewhere("lr")] = 2.5e-3
    """Step size of Adam: the largest, where a schedule lowers it."""
    learning_rate_schedule: Literal["constant", "linear", "cosine", "adaptive"] = "adaptive"
    """linear, cosine: falls to 0 over the run's agent steps; adaptive: by `learning_rate_kl`; constant: stays."""
    learning_rate_kl: Positive = 0.01
    """adaptive: KL divergence of an epoch, in nats; below half of it the rate rises again, above twice it falls."""
    adam_betas: Annotated[tuple[float, float], _DECAY_RATES] = (0.9, 0.999)
    """Decay rates of Adam's two running moments."""
    adam_eps: Positive = 1e-5
    """Added to the denominator of Adam."""
    weight_decay: NotNegative = 0.0
    """Decoupled weight decay of Adam, per step, times the learning rate."""
    max_grad_norm: PositiveOrInfinite = 0.5
    """Largest global norm of the gradient; larger gradients are scaled down to it (inf: never)."""
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
    shards: Count | None = None
    """Equal parts of the environments whose gradients are averaged (None: one per cell); a run keeps its number."""
    refresh: bool = True
    """With staleness: take values, and what PPO clips against, from the policy as it is when learning begins."""
    threads: Annotated[Count | None, MAY_CHANGE] = None
    """CPU threads of the learner (None: as many as a minibatch warrants, at most the available cores or CPU quota)."""
    nonfinite: Literal["fail", "skip"] = "fail"
    """What to do when a loss or gradient is NaN or infinite: end the run, or skip the optimizer step."""
    precision: Literal["float32", "tf32", "bfloat16"] = "float32"
    """What the learner's network computes with: tf32 in matrix products (CUDA), or bfloat16; weights stay float32."""
    compile: bool = False
    """Have torch.compile compile what the learner computes of the policy, which takes a minute or so at the start."""
    graphs: bool | Literal["auto"] = "auto"
    """Record what the learner does for a minibatch as a CUDA graph, and replay it; auto: on CUDA, where that works."""
    profile_epochs: Annotated[tuple[int, ...], _COUNTS, MAY_CHANGE] = ()
    """Epochs, counted from 1, to record with torch's profiler, as profile-<epoch>.json in the run's folder."""


@accepts_former_names
@dataclass(frozen=True, slots=True, kw_only=True)
class LossesConfig:
    """What the learner minimizes: the losses and their coefficients."""

    names: Annotated[tuple[str, ...], _EACH_ONCE, NamesCode("losses", LOSSES)] = ("ppo_actor", "ppo_critic")
    """Losses to add up: ppo_actor, ppo_critic, vtrace_actor, vtrace_critic, or package.module:function."""
    clip: Annotated[Positive, CalledElsewhere("clip_range", "clip_coef", "clip_epsilon")] = 0.2
    """PPO: how far the probability ratio may move from 1 before the objective stops rewarding it."""
    value_clip: Positive | None = None
    """PPO: how far a value may move from where the epoch's learning began (None: any distance)."""
    value_coefficient: Annotated[NotNegative, CalledElsewhere("vf_coef", "value_coef")] = 0.5
    """Weight of the value loss."""
    entropy_coefficient: Annotated[NotNegative | None, CalledElsewhere("ent_coef", "entropy_coef")] = None
    """Weight of the entropy bonus (None: 0.01, or 0.002 where actions are numbers)."""
    target_kl: Positive | None = None
    """PPO: KL divergence from the policy at the epoch's start, in nats, at which its updates end (None: never)."""
    normalize_advantage: bool = True
    """Normalize the advantages of each minibatch to mean 0 and standard deviation 1."""
    rho_clip: Positive = 1.0
    """V-trace: ceiling of the importance ratio that determines which policy's value is learned."""
    staleness_clip: Positive | None = None
    """PPO: ceiling of the importance weights that correct for an older acting policy (None: no weights)."""
    c_clip: Positive = 1.0
    """V-trace: ceiling of the importance ratio that determines how far back corrections reach."""


@accepts_former_names
@dataclass(frozen=True, slots=True, kw_only=True)
class TypePolicy:
    """The policy of the agents of one type, in a game of many agents."""

    type: Annotated[str, _TYPE, NO_CODE] = "agent"
    """The agents' name without its number: seeker for seeker_0 and seeker_1."""
    network: Annotated[str, NamesCode("networks", NETWORKS, arguments=1)] | None = None
    """As `policy.network` (None: that)."""
    hidden_sizes: Annotated[tuple[int, ...], _COUNTS] | None = None
    """Widths of the hidden layers (None: policy.hidden_sizes)."""
    activation: Literal["tanh", "relu", "silu"] | None = None
    """Nonlinearity between the hidden layers (None: policy.activation)."""
    lstm_size: Count | None = None
    """Width of the LSTM's recurrent state (None: policy.lstm_size)."""
    entropy_coefficient: NotNegative | None = None
    """Weight of the entropy bonus (None: losses.entropy_coefficient)."""
    value_coefficient: NotNegative | None = None
    """Weight of the value loss (None: losses.value_coefficient)."""


@accepts_former_names
@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyConfig:
    """The policy network and the normalization around it."""

    network: Annotated[str, NamesCode("networks", NETWORKS, arguments=1)] = "auto"
    """auto (cnn for images, else mlp), mlp, cnn, lstm, tokens, tokens_lstm, or package.module:function(spaces)."""
    hidden_sizes: Annotated[tuple[int, ...], _COUNTS, Formerly("hidden")] = (64, 64)
    """Widths of the hidden layers."""
    activation: Literal["tanh", "relu", "silu"] = "tanh"
    """Nonlinearity between the hidden layers."""
    lstm_size: Count = 64
    """Width of the LSTM's recurrent state."""
    latents: Count = 8
    """How many questions the networks tokens and tokens_lstm ask of the tokens."""
    box_actions: Annotated[Literal["clip", "squash"], CalledElsewhere("squash_output")] = "clip"
    """How numbers become actions of a Box: clipped to its bounds, or squashed into them by a tanh or softplus."""
    normalize_observations: bool = True
    """Normalize observed floats by their running mean and standard deviation."""
    normalize_rewards: bool = True
    """Divide rewards by the running standard deviation of the discounted return."""
    by_type: Annotated[tuple[TypePolicy, ...], _EACH_TYPE_ONCE] = ()
    """Types of agents with a policy of their own, and spaces of their own if need be; all others share one policy."""


@accepts_former_names
@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointsConfig:
    """When checkpoints are written, and which are kept."""

    enabled: bool = True
    """Write checkpoints, including one at the end of the run."""
    every: Period = 200
    """Epochs between checkpoints (0: only the final one)."""
    keep: Period = 3
    """Newest checkpoints to keep on disk (0: all)."""
    keep_best: Period = 0
    """Additional checkpoints to keep because their metric is best (0: none)."""
    best_metric: str | None = None
    """Metric in metrics.jsonl that ranks checkpoints, such as rollout/recent_return."""
    best_mode: Literal["max", "min"] = "max"
    """Whether the largest or the smallest value is best."""
    keep_every: Period = 0
    """Also keep the checkpoints of every this many epochs (0: none)."""
    upload: str | None = None
    """Object store for copies, under the run's name: s3://bucket/..., gs://, az://, file:// (None: no copies)."""
    wandb_project: str | None = None
    """Weights & Biases project, or entity/project, to upload checkpoints to as artifacts (None: nowhere)."""


@accepts_former_names
@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationTask:
    """One environment that policies are evaluated on."""

    name: Annotated[str, _NAME, NO_CODE] | None = None
    """Name of its score (None: the environment's name)."""
    category: Annotated[str, _NAME, NO_CODE] = "tasks"
    """Tasks of the same category also have a common score, the mean of theirs."""
    environment: Environment | None = None
    """As the top-level `environment`; its spaces must match the training's (None: the training's environment)."""
    options: Mapping[str, object] | None = None
    """Keyword arguments for making it (None: the training's for the training's environment, otherwise no arguments)."""
    episodes: Count | None = None
    """Episodes of one evaluation (None: evaluation.episodes)."""
    seed: Seed | None = None
    """Seed of its environments, the same in every evaluation (None: evaluation.seed)."""
    deterministic: bool | None = None
    """Take the most likely action instead of a sampled one (None: evaluation.deterministic)."""


@accepts_former_names
@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationConfig:
    """Evaluation in separate environments, concurrently with the training."""

    every: Period = 0
    """Epochs between evaluations (0: none)."""
    episodes: Count = 10
    """Episodes of one evaluation."""
    num_environments: Annotated[Count, Formerly("environments")] = 4
    """Number of environments."""
    deterministic: bool = True
    """Take the most likely action instead of a sampled one."""
    seed: Seed = 1_000_000
    """Seed of the evaluation's environments, the same in every evaluation."""
    tasks: tuple[EvaluationTask, ...] = ()
    """Environments to evaluate in (None: the training's), each with its own settings."""
    video_every: Period = 0
    """Epochs between evaluations that also record a video of one episode per task (0: none)."""


@accepts_former_names
@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsConfig:
    """What the run reports about itself."""

    progress: Literal["auto", "live", "plain", "off"] = "auto"
    """Progress on the terminal: a live view, plain lines, or nothing; auto: live where the terminal supports it."""
    jsonl: bool = True
    """Write metrics.jsonl into the run's folder, one object per epoch."""
    trace: bool = False
    """Write trace.json into the run's folder: a timeline of every process, for Perfetto."""
    trace_megabytes: Count = 20
    """Maximum size of trace.json; as it fills up, fewer and fewer epochs are recorded."""
    tensorboard: bool = False
    """Write TensorBoard events into the run's folder (requires the extra tensorboard)."""
    wandb: Literal["off", "online", "offline"] = "off"
    """Log to Weights & Biases: online, or into the run's folder for wandb sync (requires the extra wandb)."""
    wandb_project: str | None = None
    """W&B project (None: the one that W&B is configured to use)."""
    trackio: bool = False
    """Log to trackio, by default into its folder on this machine (requires the extra trackio)."""
    trackio_project: str | None = None
    """trackio's project (None: orchestrator)."""
    prometheus: bool = False
    """Serve the newest metrics over HTTP for Prometheus (requires the extra prometheus)."""
    prometheus_host: str = "127.0.0.1"
    """Address at which metrics are served; the default is reachable only from this machine."""
    prometheus_port: Annotated[int, _PORT] = 9464
    """Port at which metrics are served (0: a free one, which the log names)."""
    sinks: Annotated[tuple[str, ...], NamesCode("sinks", function=_SINK)] = ()
    """Your own sinks: package.module:function, called without arguments, that returns a sink."""
    weight_norm_every: Count = 10
    """Epochs between computations of the norm of the policy's weights."""
    heartbeat: NotNegative = 0.0
    """Seconds between writes of heartbeat.json into the run's folder (0: none)."""
    warnings: bool = True
    """Warn of a run that does not learn, with the likely cause, where the run has metrics or progress."""


@accepts_former_names
@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerConfig:
    """Everything that defines a training run."""

    environment: Annotated[Environment, CalledElsewhere("env", "env_id", "env_name")] = "CartPole-v1"
    """Gymnasium id, module:id (imports the module first), or package.module:function that makes an environment."""
    environment_wrappers: Annotated[tuple[str, ...], NamesCode("wrappers", function=_WRAPPER, arguments=1)] = ()
    """Functions package.module:function that wrap each environment, the first one innermost; in evaluations too."""
    max_episode_steps: Annotated[Count | None, CalledElsewhere("time_limit", "max_steps")] = None
    """Steps after which an episode is truncated, in evaluations too (None: as the environment is by itself)."""
    action_mask: Annotated[str, _MASK, NO_CODE] | None = None
    """Key of the mask of possible actions in Dict observations, or info/<key> of the one in infos (None: no mask)."""
    total_agent_steps: Annotated[Count, MAY_CHANGE, CalledElsewhere("total_timesteps", "steps")] = 500_000
    """Agent steps to train for, over all environments."""
    seed: Seed = 1
    """Source of all randomness: weights, environments, actions, minibatches."""
    run_dir: Annotated[Path | None, _PATH, MAY_CHANGE] = None
    """The run's folder; ~ is your home. None: the command makes runs/<environment>-<date-time>, a Trainer no files."""
    init_from: Annotated[str, _WEIGHTS] | None = None
    """Run, checkpoint, or the URI of either, whose policy's weights this run starts from (None: new weights)."""
    staleness: NotNegative | Literal["auto"] = 1
    """Age of the collecting policy in epochs of learning (0: they alternate; auto: what hides collection, up to 1)."""
    device: Annotated[Device, MAY_CHANGE] = "auto"
    """Device of the learner: cpu, cuda, cuda:<index>, mps, or auto: cuda if available, otherwise cpu."""
    cells: Annotated[PowerOfTwo, MAY_CHANGE, CalledElsewhere("num_learners", "world_size")] = 1
    """Learners that share each batch, each with a process of its own: a power of two."""
    cell_timeout: Annotated[Positive, MAY_CHANGE] = 600.0
    """Seconds that a learner waits for another before that one counts as lost."""
    cluster: Annotated[ClusterAddress, MAY_CHANGE, CalledElsewhere("ray_address")] | None = None
    """Ray cluster whose machines the cells are on: auto, or its address; cell 0 is on this one (None: all are)."""
    on_cell_lost: Annotated[Literal["replace", "shrink", "fail"], MAY_CHANGE] = "replace"
    """When a cell's machine is gone: look for another, go on with its workers beside those of cell 0, or fail."""
    hooks: Annotated[tuple[str, ...], NamesCode("hooks", function=_HOOK), MAY_CHANGE] = ()
    """Your own hooks: package.module:function, called without arguments, that returns a hook."""
    drain_timeout: Annotated[PositiveOrInfinite, MAY_CHANGE] = 300.0
    """Seconds that hooks may take to finish after the training: a last evaluation, say, or the upload of a file."""
    collection: CollectionConfig = field(default_factory=CollectionConfig)
    learning: LearningConfig = field(default_factory=LearningConfig)
    losses: LossesConfig = field(default_factory=LossesConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    checkpoints: Annotated[CheckpointsConfig, MAY_CHANGE] = field(default_factory=CheckpointsConfig)
    evaluation: Annotated[EvaluationConfig, MAY_CHANGE] = field(default_factory=EvaluationConfig)
    metrics: Annotated[MetricsConfig, MAY_CHANGE] = field(default_factory=MetricsConfig)

    def __post_init__(self) -> None:
        if isinstance(self.run_dir, (str, Path)) and str(self.run_dir):  # of all else, the checks complain
            object.__setattr__(self, "run_dir", user_path(self.run_dir))

    @property
    def minibatches_per_epoch(self) -> int:
        """Minibatches of one epoch, over all passes, where none is left out."""
        return self.learning.update_epochs * self.learning.minibatches

    @property
    def shards(self) -> int:
        """The parts of each batch whose gradients are computed alone."""
        return self.cells if self.learning.shards is None else self.learning.shards

    def with_shards(self, shards: int) -> TrainerConfig:
        """The same with so many shards, whatever the number of cells, unless it has a number of its own."""
        if not isinstance(self.learning, LearningConfig) or self.learning.shards is not None:  # pyright: ignore[reportUnnecessaryIsInstance]
            return self  # what else there is, the checks complain about
        if shards == self.cells:
            return self  # as it is where nothing is said
        return replace(self, learning=replace(self.learning, shards=shards))

    @property
    def versions_behind(self) -> int:
        """The staleness in whole versions, rounded up."""
        return 1 if self.staleness == "auto" else math.ceil(self.staleness)

    @property
    def refreshes(self) -> bool:
        """Whether batches that an older policy collected are evaluated anew before they are learned from."""
        return self.versions_behind > 0 and self.learning.refresh

    @property
    def steps_per_epoch(self) -> int:
        """Agent steps that one epoch collects of environments with one agent (fewer where steps only reset one)."""
        return self.collection.num_environments * self.collection.horizon
