"""Every choice of a run, with type, help and bounds: fields, sections, presets, overrides and populations."""

from typing import TYPE_CHECKING, Any

from dreamer.config.fields import ConfigError
from dreamer.config.help import reference
from dreamer.config.registry import Registry
from dreamer.config.schema import (
    AdamConfig,
    AtariConfig,
    BehaviorConfig,
    Config,
    DMCConfig,
    DQNConfig,
    DynaConfig,
    EnsembleConfig,
    EnvConfig,
    ExplorationConfig,
    LoadConfig,
    LoggerConfig,
    LossConfig,
    MiniGridConfig,
    MuZeroConfig,
    NetsConfig,
    OptimizerConfig,
    PETSConfig,
    PlannerConfig,
    PopulationConfig,
    QConfig,
    ReplayConfig,
    RSSMConfig,
    RunConfig,
    SACConfig,
    TabularConfig,
    WorldModelConfig,
    check_value,
    halvings,
    smallest_image,
)

if TYPE_CHECKING:
    from dreamer.config.loading import (
        differences,
        flatten,
        from_dict,
        load,
        load_yaml,
        nearest_keys,
        override,
        preset_directory,
        presets,
        to_dict,
        to_yaml,
    )


def __getattr__(name: str) -> Any:
    # Loading needs libraries for YAML, which the processes of environments may not have.
    if name in __all__:
        from dreamer.config import loading

        return getattr(loading, name)
    raise AttributeError(f"module 'dreamer.config' has no attribute '{name}'")


__all__ = [
    "AdamConfig",
    "AtariConfig",
    "BehaviorConfig",
    "Config",
    "ConfigError",
    "DMCConfig",
    "DQNConfig",
    "DynaConfig",
    "EnsembleConfig",
    "EnvConfig",
    "ExplorationConfig",
    "LoadConfig",
    "LoggerConfig",
    "LossConfig",
    "MiniGridConfig",
    "MuZeroConfig",
    "NetsConfig",
    "OptimizerConfig",
    "PETSConfig",
    "PlannerConfig",
    "PopulationConfig",
    "QConfig",
    "RSSMConfig",
    "Registry",
    "ReplayConfig",
    "RunConfig",
    "SACConfig",
    "TabularConfig",
    "WorldModelConfig",
    "check_value",
    "differences",
    "flatten",
    "from_dict",
    "halvings",
    "load",
    "load_yaml",
    "nearest_keys",
    "override",
    "preset_directory",
    "presets",
    "reference",
    "smallest_image",
    "to_dict",
    "to_yaml",
]
