"""What fulmen-ddp provides."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fulmen.hookspecs import hookimpl

if TYPE_CHECKING:
    from fulmen.registry import Registry

STARTS = {"ddp": "auto", "ddp_spawn": "spawn", "ddp_fork": "fork", "ddp_notebook": "fork"}
UNUSED = {"ddp_find_unused_parameters_true": True, "ddp_find_unused_parameters_false": False}
ENVIRONMENTS = (
    ("launched", "LaunchedEnvironment", "processes that strategy 'ddp' has started", 30),
    ("torchrun", "TorchrunEnvironment", "processes that torchrun has started", 20),
    ("slurm", "SlurmEnvironment", "processes that srun has started", 10),
)


@hookimpl
def register(registry: Registry) -> None:
    """Offer the strategy under the names that people know, and the environments that it finds itself in."""
    for name, start in STARTS.items():
        arguments, target = {"start_method": start}, "fulmen_ddp.strategy:DDPStrategy"
        registry.strategy(name, target, summary=f"processes that average gradients, start: {start}", arguments=arguments)
        for spelling, value in UNUSED.items():
            both, summary = {**arguments, "find_unused_parameters": value}, f"{name} with find_unused_parameters={value}"
            registry.strategy(spelling.replace("ddp", name, 1), target, summary=summary, arguments=both)
    for name, found, summary, priority in ENVIRONMENTS:
        registry.environment(name, f"fulmen_ddp.environments:{found}", summary=summary, priority=priority)
