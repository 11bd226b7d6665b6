"""The log of a run while it trains: metrics, tables, plots, pictures, and the services that they are sent to."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dreamer.logs.logger import read_metrics


def __getattr__(name: str) -> Any:
    # Not imported above: tables, which need nothing, would then wait for JAX.
    if name == "read_metrics":
        from dreamer.logs.logger import read_metrics

        return read_metrics
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


__all__ = ["read_metrics"]
