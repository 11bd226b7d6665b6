"""Every choice that decides a run: a frozen dataclass for each section, whose fields have type, help and bounds.

The defaults are the published DreamerV3. A `Config` is hashable and complete: it alone reproduces a run.
"""

import functools
import os
from dataclasses import dataclass, replace
from typing import Any, Literal

from dreamer.config.fields import (
    ConfigError,
    can_be_written,
    describe_field,
    has_type,
    in_range,
    option,
    require,
    walk,
)
from dreamer.config.paths import expand


@dataclass(frozen=True)
class DMCConfig:
    """DeepMind Control suite."""

    obs: Literal["proprio", "pixels", "both"] = option("proprio", "what the agent sees; only pixels are rendered")
    size: tuple[int, ...] = option((64, 64), "height and width of the image", "pixels")
    camera: int = option(-1, "camera of the image; -1: the default of the domain", at_least=-1)


@dataclass(frozen=True)
class AtariConfig:
    """Arcade Learning Environment; the defaults are the protocol of the 100k benchmark."""

    size: tuple[int, ...] = option((64, 64), "height and width of the image", "pixels")
    gray: bool = option(False, "one channel of luminance instead of three of colour")
    sticky: float = option(0.0, "probability that a frame repeats the action before", "probability", below=1)
    noops: int = option(30, "a game starts with 0 to this many frames without action", "frames", at_least=0)
    actions: Literal["needed", "all"] = option("needed", "actions the game distinguishes, or all 18")
    lives: Literal["ignore", "terminal", "reset"] = option(
        "ignore",
        "a lost life means nothing, ends the episode as terminal while the next one continues the game, or ends both "
        "episode and game; unless ignored, scores are those of single lives",
    )
    max_frames: int = option(108_000, "frames of a game, no-ops not counted, after which it is truncated", "frames")


@dataclass(frozen=True)
class MiniGridConfig:
    """MiniGrid."""

    obs: Literal["symbolic", "image"] = option("symbolic", "the agent's view, as classes or as pixels")
    size: tuple[int, ...] = option((64, 64), "height and width of the image", "pixels")


@dataclass(frozen=True)
class EnvConfig:
    """How environments are made and stepped."""

    count: int = option(16, "environments stepped in parallel", "environments")
    workers: Literal["sync", "async"] = option(
        "sync", "step environments one after another in this process, or in worker processes over shared memory"
    )
    per_worker: int = option(1, "environments in each worker process", "environments")
    timeout: float = option(
        60.0, "a worker that takes longer for a step is stopped and restarted", "seconds", above=0, at_most=1e6
    )
    failures: int = option(
        10, "failures in a row, without a good episode between them, that end the run", "failures", at_least=0
    )
    repeat: int = option(1, "times each action is applied; rewards are summed", "env steps per agent step")
    kwargs: dict[str, Any] = option(
        {},
        "keyword arguments of the Gymnasium id, or of the function that makes the environment, as in "
        "env.kwargs.map_name=8x8",
    )
    wrappers: tuple[str, ...] = option(
        (),
        "package.module:function or package.module:Class of your own, each called with the environment that the one "
        "before returned",
    )
    keys: tuple[str, ...] = option(
        (), "observation keys that the agent sees, as patterns such as image or robot.*; empty: all"
    )
    ignore: tuple[str, ...] = option((), "observation keys that it does not see, as such patterns; they cost nothing")
    classes: tuple[str, ...] = option(
        (), "observation keys of whole numbers that are classes, not quantities, as such patterns"
    )
    size: tuple[int, ...] = option(
        (),
        "height and width of every image, resized by area where the suite does not render it so; empty: as it is",
        "pixels",
    )
    gray: bool = option(False, "one channel of luma instead of three of colour, in every image")
    layout: Literal["auto", "hwc", "chw"] = option(
        "auto",
        "axes of images, after those of stacked frames: height, width, channels, or channels first; naming one makes "
        "images of floats, too; auto: guessed from the shape, bytes only",
    )
    mask_from_info: bool = option(
        False, "info['action_mask'] of every reset and step is the observation 'action_mask': classes that are allowed"
    )
    time_limit: int = option(
        0,
        "an episode is truncated after this many, if it has not ended before; 0: when the environment says so",
        "env steps",
        at_least=0,
    )
    clip_reward: float = option(
        0.0, "rewards are clipped to plus and minus this, after summing repeats; 0: not clipped", "reward"
    )
    check: bool = option(
        True,
        "count observations outside their bounds, and say the first of each key; they are used as they are",
    )
    rehearse: bool = option(
        True,
        "before the run, play and close two environments with random actions to see whether saved states can be "
        "trusted; with false, a resumed run begins new episodes, unless environments give their state themselves",
    )
    observe_state: bool = option(
        False,
        "environments in JAX: all numbers of the simulator's state are the observation 'simulator_state', which "
        "algorithm=mpc plans from",
    )
    python: str = option(
        "",
        "another Python, as in ~/venv/bin/python, whose packages make the environments, each in a separate process; "
        "empty: this one",
    )
    dmc: DMCConfig = option(DMCConfig(), "DeepMind Control")
    atari: AtariConfig = option(AtariConfig(), "Atari")
    minigrid: MiniGridConfig = option(MiniGridConfig(), "MiniGrid")

    @property
    def game(self) -> AtariConfig:
        """``atari`` with what ``size`` and ``gray`` ask of every image."""
        return replace(self.atari, size=self.size or self.atari.size, gray=self.gray or self.atari.gray)


@dataclass(frozen=True)
class ReplayConfig:
    """Experience replay and the batches drawn from it."""

    capacity: int = option(5_000_000, "steps kept; the oldest are forgotten", "agent steps", at_most=10**12)
    batch_size: int = option(16, "sequences per update (B)", "sequences")
    batch_length: int = option(64, "steps per sequence (T)", "agent steps", at_least=2, at_most=10**6)
    online: bool = option(True, "use every fresh sequence once before sampling uniformly")
    prefill: int = option(
        0,
        "steps before the first update, if more than a batch; the untrained policy takes them",
        "agent steps",
        at_least=0,
    )


@dataclass(frozen=True)
class WorldModelConfig:
    """Which world model is learned, and what it predicts."""

    kind: str = option(
        "rssm", "rssm: categorical latents; gaussian_rssm: Gaussian ones; or package.module:function for your own"
    )
    cont: Literal["probability", "mode", "none"] = option(
        "probability",
        "what imagination asks the continue head: its probability, or its mode, 0 or 1, as in V3 of 2023; none: there "
        "is no such head, and imagined episodes never end, as in V1 and V2 on continuous control",
    )
    reward_squash: Literal["none", "tanh"] = option("none", "tanh: the model learns tanh(reward), as V2 did on Atari")
    decoder: bool = option(
        True, "predict observations, which is what the latent is learned from, and what pictures and reports show"
    )
    representation: Literal["none", "barlow", "infonce", "next_embedding"] = option(
        "none",
        "what the latent is learned from beside or, with decoder=false, instead of predicted observations: agreement "
        "with the embedding of the observation, by correlations (barlow) or among those of a batch (infonce), or the "
        "embedding of the next one",
    )


@dataclass(frozen=True)
class RSSMConfig:
    """Recurrent state-space model."""

    cell: Literal["block_gru", "norm_gru", "gru", "early_reset_gru"] = option(
        "block_gru",
        "block_gru: V3; norm_gru: one dense GRU with LayerNorm, V2 and V3 of 2023; gru: V1; early_reset_gru: PlaNet",
    )
    deter: int = option(8192, "width of the recurrent state (D)", "units")
    hidden: int = option(1024, "width of the layers around it", "units")
    stoch: int = option(32, "variables of the stochastic state (S)", "variables")
    classes: int = option(64, "classes of each variable (C)", "classes", at_least=2, at_most=2**16)
    blocks: int = option(8, "diagonal blocks of the recurrent matrix (G)", "blocks")
    prior_layers: int = option(2, "hidden layers of the prior", "layers", at_least=0)
    posterior_layers: int = option(1, "hidden layers of the posterior", "layers", at_least=0)
    unimix: float = option(
        0.01, "share of the uniform distribution mixed into prior and posterior", "probability", below=1
    )
    longest_memory: float = option(
        0.0,
        "the units of each block begin by remembering for 3.7 steps to this many, evenly in logarithms; 0: all for 3.7",
        "agent steps",
        at_most=1e9,
    )
    std: Literal["softplus", "sigmoid"] = option(
        "softplus", "standard deviation of Gaussian variables: softplus(x) + 0.1, or 2 sigmoid(x / 2) + 0.1"
    )
    initial: Literal["zeros", "learned"] = option(
        "zeros", "state before an episode; learned: tanh of a vector and the prior's mode there, as in V3 of 2023"
    )
    free_nats: float = option(1.0, "KL below this is free, after summing the variables", "nats")
    free_nats_over: Literal["step", "mean"] = option(
        "step", "what is compared with free_nats: the KL of each step, or as in V1 and V2, the mean of a batch"
    )


@dataclass(frozen=True)
class NetsConfig:
    """Encoder, decoder and heads."""

    units: int = option(1024, "width of every multilayer perceptron", "units")
    depth: int = option(64, "base channels of the convolutions", "channels")
    mults: tuple[int, ...] = option((2, 3, 4, 4), "channel multipliers, one per halving of the image", at_most=1024)
    convolutions: Literal["pool", "same", "valid"] = option(
        "pool",
        "how images are halved and doubled; pool: by the maximum of 2 x 2 and by repetition, as published, always with "
        "SiLU and RMSNorm; same: by strides of 2 with padding, as in DreamerV3 of 2023; valid: by strides of 2 without "
        "padding, as in PlaNet and Dreamer V1 and V2, for 64 x 64 pixels",
    )
    kernel: int = option(5, "kernel size of convolutions=pool; the others have the published ones", "pixels")
    image_bits: int = option(
        8, "bits of each channel that are seen and predicted, as PlaNet's 5; 8: all", "bits", at_most=8
    )
    symlog: bool = option(
        True, "squash vector observations by symlog, as inputs and as targets; with false, both are as they are"
    )
    activation: Literal["silu", "elu", "relu"] = option("silu", "activation of every hidden layer")
    conv_activation: Literal["auto", "silu", "elu", "relu"] = option(
        "auto", "activation of convolutions=same and valid; auto: nets.activation"
    )
    norm: Literal["rms", "layer", "none"] = option("rms", "normalisation before every activation")
    encoder_layers: int = option(3, "hidden layers of the vector encoder", "layers", at_least=0)
    decoder_layers: int = option(3, "hidden layers of the vector decoder", "layers", at_least=0)
    reward_layers: int = option(1, "hidden layers of the reward head", "layers", at_least=0)
    cont_layers: int = option(1, "hidden layers of the continue head", "layers", at_least=0)
    actor_layers: int = option(3, "hidden layers of the actor", "layers", at_least=0)
    critic_layers: int = option(3, "hidden layers of the critic", "layers", at_least=0)
    bins: int = option(
        255, "bins of the symexp two-hot distribution; odd, so that one bin is exactly 0", "bins", at_least=3
    )
    init: Literal["fan_in", "fan_avg", "glorot"] = option(
        "fan_in",
        "initial kernels: truncated normal by the inputs of a layer, or by the mean of inputs and outputs, as in V3 of "
        "2023; or uniform by that, as in V1, V2 and PlaNet",
    )
    reward_head: Literal["symexp_twohot", "symlog_twohot", "hyperbolic_twohot", "normal"] = option(
        "symexp_twohot",
        "how rewards are predicted: over bins in raw units, over bins of their symlog, as in V3 of 2023, over whole "
        "numbers that are about their square root, as in MuZero, or by the mean of a normal of unit variance",
    )
    critic_head: Literal["symexp_twohot", "symlog_twohot", "hyperbolic_twohot", "normal"] = option(
        "symexp_twohot", "how returns are predicted, likewise"
    )
    dtype: Literal["float32", "bfloat16"] = option(
        "bfloat16", "dtype of activations; parameters, norms, softmax, losses and moments are float32 always"
    )
    loops: Literal["auto", "plain"] = option(
        "auto",
        "auto: loops rearranged for the backend, on CPUs as measured, on accelerators by counted kernels; "
        "plain: as written",
    )

    @property
    def image_activation(self) -> str:
        """Activation of the convolutions."""
        return self.activation if self.conv_activation == "auto" else self.conv_activation


@dataclass(frozen=True)
class BehaviorConfig:
    """Actor and critic, learned in imagination."""

    kind: str = option(
        "actor_critic",
        "actor_critic; dynamics_backprop: the same with behavior.gradient=dynamics; none: a planner acts alone; or "
        "package.module:function for your own",
    )
    gradient: Literal["reinforce", "dynamics", "mix", "auto"] = option(
        "reinforce",
        "what the actor ascends: log-probabilities times advantages, imagined returns through the model, or both; "
        "auto: dynamics if all actions are continuous, else reinforce",
    )
    mix: float = option(0.1, "share of dynamics in behavior.gradient=mix", at_most=1)
    returns: Literal["v1", "v2", "v3_2023", "v3"] = option(
        "v3",
        "which imagined states count, and whether the value of a state includes the reward of arriving there: see "
        "dreamer.behaviors.estimators",
    )
    target: Literal["fast", "slow"] = option("fast", "the critic that returns and advantages are made with")
    actor: Literal["bounded_normal", "tanh_normal", "truncated_normal"] = option(
        "bounded_normal", "distribution of continuous actions: that of V3, V1 or V2"
    )
    actor_scale: float = option(0.01, "factor on the initial kernels of the actor's output layers")
    return_norm: bool = option(True, "divide advantages by the range of returns")
    slow_every: int = option(1, "the slow critic moves in every such update, the first included", "updates")
    exploration_noise: float = option(
        0.0,
        "while training, standard deviation of what is added to continuous actions, which are then clipped to [-1, 1]; "
        "and share of discrete ones that are random",
        at_most=1,
    )
    horizon: int = option(15, "imagined steps (H)", "agent steps", at_most=10**6)
    starts: int = option(
        0, "imagination starts from this many states at the end of each sequence; 0: from all", "states", at_least=0
    )
    return_horizon: float = option(333.0, "discount = 1 - 1 / return_horizon", "agent steps", above=1)
    return_lambda: float = option(0.95, "mixing of the lambda-return", at_most=1)
    cont_discount: bool = option(True, "train the continue head on (1 - terminal) * discount instead of 1 - terminal")
    entropy: float = option(3e-4, "scale of the entropy bonus")
    actor_unimix: float = option(
        0.01, "share of the uniform distribution mixed into discrete actions (the paper's; official code: 0)", below=1
    )
    min_std: float = option(0.1, "smallest standard deviation of continuous actions", above=0)
    max_std: float = option(1.0, "largest standard deviation of continuous actions", above=0)
    return_rate: float = option(0.01, "rate of the moving average of return percentiles", "per update", at_most=1)
    return_limit: float = option(1.0, "returns are never scaled up: the divisor is at least this", "reward", above=0)
    slow_rate: float = option(0.02, "rate at which the slow critic follows the critic", "per update", at_most=1)
    slow_regularizer: float = option(1.0, "weight of the slow critic's prediction as a second target")
    replay_gradient: bool = option(True, "the critic's loss on replayed rewards trains the world model, too")


@dataclass(frozen=True)
class QConfig:
    """Critics of actions, which SAC and DQN learn."""

    critics: int = option(2, "critics, each with a slow copy (K)", "critics", at_most=100)
    target: Literal["min", "mean", "quantile", "lcb"] = option(
        "min",
        "what the critics say together, in targets and to the actor: the lowest value, the mean, a quantile, or a "
        "lower confidence bound",
    )
    quantile: float = option(0.25, "the quantile of q.target=quantile; 0: the lowest value", at_most=1)
    beta: float = option(1.0, "standard deviations between the mean and the bound of q.target=lcb")


@dataclass(frozen=True)
class SACConfig:
    """Soft actor-critic."""

    target_entropy: float = option(
        -1.0,
        "entropy that the temperature keeps the policy at, for each number of an action; 0.69 is uniform",
        "nats",
        at_least=-1000,
        below=0.69,
    )


@dataclass(frozen=True)
class DQNConfig:
    """Deep Q network."""

    epsilon: float = option(0.05, "share of random actions in training, in the end", "probability", at_most=1)
    epsilon_updates: int = option(5000, "updates over which it falls from 1", "updates")


@dataclass(frozen=True)
class MuZeroConfig:
    """MuZero; ``planner`` says how it searches."""

    latent: int = option(64, "width of a state of the model", "units")
    layers: int = option(2, "hidden layers of the dynamics", "layers", at_least=0)
    unroll: int = option(5, "steps that the model is unrolled by to learn (K), less than a sequence", "agent steps")
    td_steps: int = option(
        10,
        "rewards in the target of a value, followed by the value that the search found there",
        "agent steps",
        at_most=1000,
    )


@dataclass(frozen=True)
class EnsembleConfig:
    """Probabilistic networks that predict the next observation and the reward, for algorithms that imagine in them."""

    members: int = option(7, "networks (K)", "members", at_most=100)
    elites: int = option(5, "of these, those that imagine: the best on held-out transitions", "members", at_most=100)
    layers: int = option(4, "hidden layers of each", "layers", at_least=0)
    units: int = option(200, "width of each", "units")
    lr: float = option(1e-3, "learning rate of Adam", above=0)
    weight_decay: float = option(5e-5, "share of every parameter that is added to its gradient", below=1)
    holdout: float = option(
        0.2, "share of the transitions that no member learns from; where few different ones exist, 0", below=1
    )
    propagation: Literal["e", "ds", "ts1", "tsinf"] = option(
        "ts1",
        "how members make one prediction: e: their average; ds: a draw from a normal with the moments of their "
        "mixture; ts1: a draw of one, another at each step; tsinf: a draw of one, the same along a rollout",
    )
    ends: str = option(
        "learned",
        "where the task ends: learned, by a network of the observation that follows; never; or "
        "package.module:function, from flat observations [N, V], keys in order, to booleans [N]",
    )


@dataclass(frozen=True)
class DynaConfig:
    """Learning from real and imagined transitions, as ``algorithm=mbpo`` and ``dyna_q`` do."""

    updates: int = option(20, "updates of the behaviour for each update of the ensemble", "updates", at_most=10_000)
    real_ratio: float = option(0.05, "share of real transitions among those that the behaviour learns from", at_most=1)
    rollout: tuple[int, ...] = option(
        (20_000, 150_000, 1, 1),
        "steps of a rollout, as [first, last, low, high]: low until env step first, then rising evenly to high, which "
        "it reaches at env step last",
        at_least=0,
    )
    buffer: int = option(100_000, "imagined transitions that are kept on the device: the newest", "transitions")


@dataclass(frozen=True)
class TabularConfig:
    """Tables of values, as ``algorithm=dyna_tabular`` learns them."""

    planning: int = option(50, "remembered steps that are learned from in each update (n)", at_least=0, at_most=10**6)
    bonus: float = option(
        0.0,
        "a remembered step earns this times the root of the updates since it was tried in addition (kappa of Dyna-Q+); "
        "0: Dyna-Q",
    )
    alpha: float = option(0.1, "share of its error by which a value moves", above=0, at_most=1)
    epsilon: float = option(0.1, "share of random actions in training", at_most=1)


@dataclass(frozen=True)
class PETSConfig:
    """Planning in an ensemble, as ``algorithm=pets`` does."""

    particles: int = option(
        20, "rollouts of each action sequence, over which returns are averaged; a multiple of ensemble.elites"
    )


@dataclass(frozen=True)
class PlannerConfig:
    """Acting by searching the world model; the behaviour gives the value of the last state."""

    kind: str = option(
        "none",
        "none: the policy acts; random: random shooting; cem: cross-entropy method; icem: the same with correlated "
        "noise and kept elites; mppi: elites weighted by their returns, and the policy's candidates; ilqr: along the "
        "gradient and curvature of one continuous action; muzero, gumbel_muzero: tree search for one discrete action; "
        "or package.module:function for your own",
    )
    horizon: int = option(9, "steps that a plan looks ahead", "agent steps", at_most=10**6)
    candidates: int = option(256, "action sequences in each iteration", "sequences", at_least=2)
    elites: int = option(32, "best sequences, which the next iteration is drawn around", "sequences")
    iterations: int = option(4, "rounds of drawing candidates", "iterations")
    warm_start: bool = option(True, "a search begins with the plan of the step before, shifted by one step")
    leaf: bool = option(True, "the value of the last state counts; without, only the rewards of the plan")
    momentum: float = option(0.1, "share of the previous distribution that each iteration keeps", below=1)
    fit: Literal["std", "variance", "truncated"] = option(
        "std",
        "what momentum mixes of continuous actions: standard deviations, at least min_std; or variances, to which "
        "min_std^2 is added; truncated: variances, of normals cut off so that they stay within the bounds",
    )
    init_std: float = option(1.0, "standard deviation of continuous actions before the first iteration", above=0)
    min_std: float = option(0.05, "smallest standard deviation of continuous actions")
    epsilon: float = option(0.0, "cem and mppi: the search ends once no variance of an action is above this; 0: never")
    noise_beta: float = option(2.0, "icem: the power of the noise falls with frequency to this power; 0: white")
    keep: float = option(0.3, "icem: share of the elites that are candidates of the next iteration", at_most=1)
    decay: float = option(1.25, "icem: each iteration draws fewer candidates than the last by this factor", at_least=1)
    temperature: float = option(0.5, "mppi: the weight of an elite is exp(temperature * return)", "per reward")
    prior: float = option(0.05, "mppi: share of the candidates that follow the policy", below=1)
    smoothing: float = option(0.0, "mppi: share of each action that is the action before it", below=1)
    simulations: int = option(32, "muzero, gumbel_muzero: states that a tree is grown by", "states", at_most=10**5)
    considered: int = option(16, "gumbel_muzero: most actions that a search begins with", "classes", at_most=10**4)


@dataclass(frozen=True)
class ExplorationConfig:
    """What ``algorithm=plan2explore`` looks for; nothing else reads it."""

    kind: str = option(
        "disagreement", "disagreement: of heads that predict a step; or package.module:function for your own bonus"
    )
    target: Literal["embedding", "latent"] = option(
        "embedding",
        "what the heads predict of the next step: the embedding of its observation, as in the paper, or the sample of "
        "its latent state",
    )
    intrinsic: float = option(
        1.0, "weight of the bonus in the explorer's reward, which is 0 for steps like those in replay, 1 for twice that"
    )
    extrinsic: float = option(0.0, "weight of the task's reward in it")
    explorer_horizon: float = option(
        333.0,
        "discount = 1 - 1 / explorer_horizon of the explorer, in place of behavior.return_horizon",
        "agent steps",
        above=1,
    )
    explorer_entropy: float = option(
        3e-4,
        "weight of the entropy of the explorer's policy, in place of behavior.entropy: what is new changes as it is "
        "found, and a policy that is sure of itself tries nothing else",
    )
    heads: int = option(10, "heads of the ensemble; one alone has none to disagree with", "members", at_least=2)
    units: int = option(400, "width of each", "units")
    layers: int = option(4, "hidden layers of each", "layers", at_least=0)


@dataclass(frozen=True)
class LossConfig:
    """Weights of the terms of the one loss."""

    reconstruction: float = option(1.0, "weight of every observation key")
    reward: float = option(1.0, "weight of the reward head")
    reward_lift: float = option(
        0.0,
        "power p: the gradient of the reward head at the latent state is multiplied by (norm of the gradient of the "
        "other losses / 4 times its own)^p, if above 1; p falls to 0 as rewards become explained; 0: as published",
        at_most=3,
    )
    cont: float = option(1.0, "weight of the continue head")
    barlow: float = option(0.05, "weight of the correlations with embeddings, with world_model.representation=barlow")
    infonce: float = option(1.0, "weight of telling embeddings apart, with world_model.representation=infonce")
    next_embedding: float = option(
        1.0, "weight of the predicted embedding, with world_model.representation=next_embedding"
    )
    redundancy: float = option(
        5e-4, "weight, within barlow and next_embedding, of correlations with entries of the embedding that are others'"
    )
    straighten: float = option(0.0, "weight of how sharply the path of the recurrent state bends; 0: as published")
    dyn: float = option(1.0, "weight of KL(stop_gradient(posterior) || prior)")
    rep: float = option(0.1, "weight of KL(posterior || stop_gradient(prior))")
    actor: float = option(1.0, "weight of the policy gradient and the entropy bonus")
    critic: float = option(1.0, "weight of the critic on imagined returns")
    replay_critic: float = option(0.3, "weight of the critic on replayed rewards")


@dataclass(frozen=True)
class AdamConfig:
    """Adam for one group of parameters."""

    lr: float = option(1e-4, "learning rate", above=0, at_most=1e29)
    eps: float = option(1e-8, "added to the root of the second moment", above=0)
    clip: float = option(100.0, "largest norm of all gradients of the group together; 0 disables")
    decay: float = option(0.0, "share of every parameter that each update takes away", below=1)


@dataclass(frozen=True)
class OptimizerConfig:
    """LaProp with adaptive gradient clipping, and for matrices optionally Muon; or Adam in groups."""

    kind: Literal["laprop", "muon", "adam", "keras_adam"] = option(
        "laprop",
        "laprop: as published; muon: matrices follow their orthogonalised momentum, all else LaProp; adam: Adam in "
        "groups, as in V3 of 2023; keras_adam: the same with epsilon where TensorFlow adds it, as in V1, V2 and PlaNet",
    )
    model: AdamConfig = option(AdamConfig(), "Adam for the world model")
    bonus: AdamConfig = option(AdamConfig(lr=3e-4), "Adam for what an explorer is rewarded by")
    actor: AdamConfig = option(AdamConfig(lr=3e-5), "Adam for actors")
    critic: AdamConfig = option(AdamConfig(lr=3e-5), "Adam for critics")
    muon_rms: float = option(0.2, "root mean square of Muon's steps, times the learning rate", above=0)
    muon_beta: float = option(0.95, "decay of Muon's momentum", below=1)
    order: Literal["together", "model_first"] = option(
        "together",
        "all parameters move at once; or the model first, and the behaviour dreams in what it became, from states as "
        "they were, as in V2 and V3 of 2023",
    )
    lr: float = option(4e-5, "learning rate", above=0, at_most=1e29)
    warmup: int = option(1000, "updates over which the learning rate rises from 0", "updates", at_least=0)
    anneal: int = option(
        0,
        "update from which the learning rate is a tenth, falling after the warm-up; 0: constant",
        "updates",
        at_least=0,
    )
    clip: float = option(0.3, "largest ratio of gradient norm to parameter norm, per tensor; 0 disables")
    clip_min: float = option(1e-3, "parameter norms below this count as this", above=0)
    beta1: float = option(0.9, "decay of the momentum", below=1)
    beta2: float = option(0.999, "decay of the second moment", below=1)
    eps: float = option(1e-20, "added to the root of the second moment", above=0)
    moments: Literal["auto", "replicated", "sharded"] = option(
        "auto",
        "with several devices: both moments whole on each, or divided among them; auto divides arrays of a million "
        "numbers and more",
    )


@dataclass(frozen=True)
class PopulationConfig:
    """Agents trained side by side in one program, each as it would be alone; needs ``run.loop=device``."""

    seeds: int = option(
        1, "members for each combination of values: seed, seed + 1, ...; 'population=8' for short", "members"
    )
    sweep: tuple[str, ...] = option(
        (),
        "numbers in which members differ, each as 'optimizer.lr=[1e-4, 3e-4]'; members are all combinations; "
        "'population.lr=[1e-4,3e-4]' for short",
    )


@dataclass(frozen=True)
class LoadConfig:
    """Parameters that a new run takes from another one; a resumed run has its own."""

    from_: str = option(
        "", "directory of a run, or of one of its checkpoints, from which a new run takes parameters; empty: fresh ones"
    )
    only: Literal["all", "world_model", "encoder", "decoder", "dynamics", "behavior", "actor", "critic"] = option(
        "all", "the part that is taken, where names and shapes agree; behavior is actor and critic"
    )


@dataclass(frozen=True)
class RunConfig:
    """How long to train, and what to record."""

    loop: Literal["host", "device"] = option(
        "host",
        "step environments on the host, or, for tasks jax_NAME, craftax_NAME and playground_NAME, run environments, "
        "replay and updates as one program on the accelerator",
    )
    env_steps: int = option(
        1_000_000,
        "train until this many environment steps were taken; the device loop counts resets as steps",
        "env steps",
    )
    profile: int = option(0, "profile this many updates with JAX, after the first ten; 0: none", "updates", at_least=0)
    episodes: int = option(0, "stop after this many episodes; 0: any number", "episodes", at_least=0)
    hours: float = option(0.0, "stop after training for this long, over all resumes; 0: any time", "hours")
    score: float = option(
        1e9,
        "stop once the mean return of the last ten training episodes is at least this",
        "reward",
        at_least=-1e9,
    )
    max_skipped: int = option(
        20, "updates skipped in a row, because a number in them is not finite, that end the run", "updates"
    )
    train_ratio: float = option(32.0, "replayed steps per agent step", "replayed steps per agent step", above=0)
    eval_episodes: int = option(
        20,
        "episodes of the closing evaluation, with the policy's mode; 0 skips it",
        "episodes",
        at_least=0,
        at_most=10**6,
    )
    eval_envs: int = option(
        0,
        "environments that an evaluation has at once, after those of training were closed; 0: as many as one process "
        "has in training. Where they cost little, 20 are faster, and the episodes are the same",
        "environments",
        at_least=0,
    )
    eval_steps: int = option(
        30_000, "an episode of an evaluation that does not end is cut off after this many actions", "agent steps"
    )
    log_every: float = option(10.0, "seconds between lines of metrics", "seconds")
    save_every: float = option(600.0, "seconds between checkpoints", "seconds")
    keep: int = option(2, "newest checkpoints kept; the best by evaluation stays as well", "checkpoints")


@dataclass(frozen=True)
class LoggerConfig:
    """What is written besides ``metrics.jsonl``."""

    tensorboard: bool = option(True, "write files for TensorBoard to LOGDIR/tensorboard")
    wandb: bool = option(
        False, "send metrics and pictures to Weights & Biases; if it cannot be reached, keep them to send later"
    )
    project: str = option("dreamer", "project at Weights & Biases")
    pictures_every: float = option(
        300.0, "seconds between pictures of the world model's predictions in LOGDIR/pictures; 0: none", "seconds"
    )
    diagnose: bool = option(
        False,
        "every tenth line of metrics also says how hard each loss pulls on the world model, and what its recurrent "
        "state carries; the start then compiles one more program, which takes two thirds as long as that of the update",
    )


@dataclass(frozen=True)
class Config:
    """Everything that decides a run."""

    task: str = option("gym_CartPole-v1", "environment: gym_ID for any Gymnasium id, or one of the built-in tasks")
    algorithm: str = option(
        "dreamer",
        "dreamer; plan2explore: explores before there is a reward; muzero: searches a model of rewards and values "
        "alone; mbpo and dyna_q: SAC and DQN on what an ensemble imagines; pets: plans in an ensemble; dyna_tabular: "
        "tables for small mazes; sac and dqn: without a world model; mpc: plans on the rules of a JAX environment and "
        "learns nothing; or package.module:function for your own",
    )
    seed: int = option(0, "one seed from which all randomness is derived", at_least=0, below=2**31)
    logdir: str = option("", "directory of the run; empty: runs/TIME-TASK-SEED")
    devices: str = option(
        "1", "how many devices of each host share every update, or the members of a population: a number, or all"
    )
    distributed: bool = option(
        False,
        "one run on several hosts, found through the scheduler or JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and "
        "JAX_PROCESS_ID",
    )
    env: EnvConfig = option(EnvConfig(), "environments")
    replay: ReplayConfig = option(ReplayConfig(), "replay")
    world_model: WorldModelConfig = option(WorldModelConfig(), "world model")
    rssm: RSSMConfig = option(RSSMConfig(), "recurrent state-space model")
    nets: NetsConfig = option(NetsConfig(), "networks")
    behavior: BehaviorConfig = option(BehaviorConfig(), "actor and critic")
    q: QConfig = option(QConfig(), "critics of actions, of SAC and DQN")
    sac: SACConfig = option(SACConfig(), "soft actor-critic")
    dqn: DQNConfig = option(DQNConfig(), "deep Q network")
    muzero: MuZeroConfig = option(MuZeroConfig(), "MuZero")
    ensemble: EnsembleConfig = option(EnsembleConfig(), "ensemble of probabilistic networks, of MBPO, PETS and Dyna-Q")
    dyna: DynaConfig = option(DynaConfig(), "learning from what an ensemble imagines")
    tabular: TabularConfig = option(TabularConfig(), "tables of values")
    pets: PETSConfig = option(PETSConfig(), "planning in an ensemble")
    planner: PlannerConfig = option(PlannerConfig(), "planner")
    exploration: ExplorationConfig = option(ExplorationConfig(), "exploration")
    loss: LossConfig = option(LossConfig(), "loss weights")
    optimizer: OptimizerConfig = option(OptimizerConfig(), "optimizer")
    population: PopulationConfig = option(PopulationConfig(), "population")
    load: LoadConfig = option(LoadConfig(), "parameters to start from")
    run: RunConfig = option(RunConfig(), "run")
    logger: LoggerConfig = option(LoggerConfig(), "logger")

    def __post_init__(self) -> None:
        for key, field, value in walk(self):
            require(has_type(field.type, value) and in_range(field, value), key, value, describe_field(field))
            if key.endswith(".size"):
                empty = not value and key == "env.size"
                require(empty or len(value) == 2, key, value, "two numbers, height and width")
            if isinstance(value, str):
                require(can_be_written(value), key, value, "characters that a file can hold")
        for path in self.env.wrappers:
            require(":" in path, "env.wrappers", path, "package.module:function, or a list of these")
        # Types are known now. `~` is replaced once, here, so that all that read the config agree on the directory.
        object.__setattr__(self, "logdir", _without_tilde("logdir", self.logdir))
        source = _without_tilde("load.from", self.load.from_)
        object.__setattr__(self, "load", replace(self.load, from_=source))
        python = _without_tilde("env.python", self.env.python)
        # A resumed run may start in another directory. Links stay: they tell a Python its virtual environment.
        python = os.path.abspath(python) if os.sep in python else python
        object.__setattr__(self, "env", replace(self.env, python=python))
        number = self.devices.isdecimal() and int(self.devices) >= 1
        require(number or self.devices == "all", "devices", self.devices, "a number from 1 on, or all")
        deter = self.rssm.deter
        blocks = self.rssm.blocks
        require(deter % blocks == 0, "rssm.deter", deter, f"a multiple of rssm.blocks={blocks}")
        memory = self.rssm.longest_memory
        require(memory == 0 or memory >= 4, "rssm.longest_memory", memory, "0, or at least 4 agent steps")
        for key, value in (("nets.bins", self.nets.bins), ("nets.kernel", self.nets.kernel)):
            require(value % 2 == 1, key, value, "an odd number")
        require(len(self.nets.mults) > 0, "nets.mults", self.nets.mults, "at least one multiplier")
        require(len(self.nets.mults) <= 16, "nets.mults", self.nets.mults, "at most 16 multipliers")
        four = self.nets.convolutions != "valid" or len(self.nets.mults) == 4
        require(four, "nets.mults", self.nets.mults, "four multipliers with nets.convolutions=valid")
        learned = self.world_model.decoder or self.world_model.representation != "none"
        why = "0 without decoder and representation, where nothing else keeps states from becoming all alike"
        require(learned or self.loss.straighten == 0, "loss.straighten", self.loss.straighten, why)
        elites = self.planner.elites
        candidates = self.planner.candidates
        require(elites <= candidates, "planner.elites", elites, f"at most planner.candidates={candidates}")
        best = self.ensemble.elites
        members = self.ensemble.members
        require(best <= members, "ensemble.elites", best, f"at most ensemble.members={members}")
        rollout = self.dyna.rollout
        require(len(rollout) == 4, "dyna.rollout", rollout, "four numbers, first, last, low and high")
        first, last, shortest, longest = rollout
        forward = first <= last and 1 <= shortest <= longest
        why = "first, last, low and high with first <= last and 1 <= low <= high: rollouts never become shorter"
        require(forward, "dyna.rollout", rollout, why)
        epsilon = self.planner.epsilon
        widest = self.planner.init_std**2
        require(epsilon < widest, "planner.epsilon", epsilon, f"less than planner.init_std^2={widest:g}")
        low = self.behavior.min_std
        high = self.behavior.max_std
        require(low <= high, "behavior.min_std", low, f"at most behavior.max_std={high}")
        length = self.replay.batch_length
        starts = self.behavior.starts
        require(starts <= length, "behavior.starts", starts, f"0 to replay.batch_length={length}")
        anneal = self.optimizer.anneal
        warmup = self.optimizer.warmup
        require(not 0 < anneal <= warmup, "optimizer.anneal", anneal, f"0, or more than optimizer.warmup={warmup}")
        capacity = self.replay.capacity
        steps = self.env.count * (length + 1)
        why = f"at least env.count * (replay.batch_length + 1) = {steps}, room for one sequence per environment"
        require(capacity >= steps, "replay.capacity", capacity, why)


def _without_tilde(key: str, path: str) -> str:
    try:
        return os.fspath(expand(path)) if path.startswith("~") else path
    except ConfigError as error:
        raise ConfigError(f"{key}={path} cannot be used. {error}") from error


@functools.cache
def leaves() -> dict[str, Any]:
    """Field of every leaf by dotted key."""
    return {key: field for key, field, _ in walk(Config())}


def check_value(key: str, value: Any) -> None:
    """Raise `ConfigError` unless a value has the type and range of its key, whatever the other keys are."""
    field = leaves()[key]
    require(has_type(field.type, value) and in_range(field, value), key, value, describe_field(field))


def halvings(height: int, width: int, most: int) -> int:
    """How many times the convolutions halve an image: at most ``most``, and as long as 3 pixels or more are left.

    Raises:
        ConfigError: more than 16 pixels are left, or it cannot be halved at all; the message has legal sizes.
    """
    count = 0
    sides = height, width
    while count < most and all(side % 2 ** (count + 1) == 0 and side // 2 ** (count + 1) >= 3 for side in sides):
        count += 1
    if count == 0 or max(height, width) // 2**count > 16:
        legal = sorted({small * 2**k for k in range(1, most + 1) for small in range(3, 17)})
        raise ConfigError(
            f"An image of {height}x{width} pixels cannot be encoded: height and width must be halved together between "
            f"1 and {most} times (the length of nets.mults) and end between 3 and 16 pixels. Legal sides are {legal}, "
            "if both sides allow the same number of halvings. Resize the image, as env.size=[64,64] does, or pad it; "
            "if it is no image, see env.classes and env.ignore."
        )
    return count


def smallest_image(height: int, width: int, nets: NetsConfig) -> tuple[int, int]:
    """Height and width of what the last convolution of the encoder makes of an image.

    Raises:
        ConfigError: the convolutions cannot encode an image of this size; the message has legal sizes.
    """
    if nets.convolutions == "valid":
        if (height, width) != (64, 64):
            raise ConfigError(
                f"An image of {height}x{width} pixels cannot be encoded: nets.convolutions=valid expects 64x64. Resize "
                "the image by env.size=[64,64], or use nets.convolutions=same or pool."
            )
        return 2, 2
    factor = 2 ** halvings(height, width, len(nets.mults))
    return height // factor, width // factor
