"""Several processes that each train on their share of the data, and average their gradients."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fulmen import Accelerator, ClusterEnvironment, ConfigurationError, Module, ModuleError, Strategy
from fulmen.contracts.strategy import ReduceOp
from fulmen_ddp import group
from fulmen_ddp.batchnorm import Synced
from fulmen_ddp.comm import check_hook, register_hook
from fulmen_ddp.environments import LaunchedEnvironment
from fulmen_ddp.external import ExternalLauncher
from fulmen_ddp.place import Place, own_place, place_in
from fulmen_ddp.processes import ProcessLauncher
from fulmen_ddp.script import ScriptLauncher, follow_parent
from fulmen_ddp.start import START_METHODS, choose_start_method
from fulmen_ddp.steps import StepModule, naming_unused

T = TypeVar("T")
Step = Callable[..., Any]


class DDPStrategy(Strategy):
    """``torch.nn.parallel.DistributedDataParallel``: one process per device, each with a copy of the module.

    Args:
        start_method: Who makes the processes where torchrun or SLURM have not. ``"popen"`` starts the program again for each
            other rank, so that all of them run the whole script; ``"spawn"``, ``"forkserver"`` and ``"fork"`` make
            processes for one call of ``fit`` and the like, and bring its results back. ``"auto"``: ``"popen"`` for a
            script, ``"fork"`` in a notebook, ``"spawn"`` under pytest.
        find_unused_parameters: Look after each forward pass for parameters that took no part. Needed where some do not
            take part in every step; costs a walk over the graph.
        static_graph: Promise that the same parameters take part in every step, which makes checkpointed activations and
            unused parameters cheap.
        gradient_as_bucket_view: Let gradients be views of the buffers that are exchanged: saves memory as large as the
            gradients, and a copy.
        bucket_cap_mb: Size of these buffers in MiB.
        broadcast_buffers: Copy the buffers of rank 0 (running means of batch norm) to all ranks before each forward pass.
        sync_batchnorm: Let batch norm layers compute mean and variance over all ranks.
        comm_hook: How gradients travel: ``"bf16"`` or ``"fp16"`` (compressed to half), ``"powersgd"`` (as matrices of low
            rank), or a function ``hook(state, bucket) -> Future`` as PyTorch documents it. ``None``: as they are.
        comm_state: For ``"powersgd"`` a mapping of arguments of PyTorch's ``PowerSGDState``, such as
            ``{"matrix_approximation_rank": 2, "start_powerSGD_iter": 1000}``; for a function its first argument.
        timeout_s: Seconds, or a timedelta, after which an exchange that another rank does not join is an error.
        timeout: The same, by the name that Lightning uses.
        process_group_backend: ``"gloo"``, ``"nccl"`` or another; ``None``: by the device.
        uneven: What happens where ranks have different numbers of training batches, or samples that cannot be divided.
            ``"drop"``: what is left over is not trained on; an epoch ends on all ranks with the first that has no more.
            ``"pad"``: samples of a dataset come again; of other data the rank's last batch, until all have no more.
            ``"join"``: every sample comes once, and ranks that have no more take part with gradients of zero. ``None``:
            ``"pad"`` for datasets that fulmen shares among the ranks, ``"drop"`` for other data.
        stop_timeout_s: Seconds that ranks which this process has spawned or forked may take to stop after SIGTERM, until
            they are killed.

    Raises:
        ConfigurationError: An argument has a wrong value, or two contradict each other.
    """

    name = "ddp"

    def __init__(
        self,
        start_method: Literal["auto", "popen", "spawn", "forkserver", "fork"] = "auto",
        *,
        find_unused_parameters: bool = False,
        static_graph: bool = False,
        gradient_as_bucket_view: bool = True,
        bucket_cap_mb: float | None = None,
        broadcast_buffers: bool = True,
        sync_batchnorm: bool = False,
        comm_hook: str | Callable[..., Any] | None = None,
        comm_state: Any = None,
        timeout_s: float | timedelta = 1800.0,
        timeout: float | timedelta | None = None,
        process_group_backend: str | None = None,
        uneven: Literal["drop", "pad", "join"] | None = None,
        stop_timeout_s: float | timedelta = 30.0,
    ) -> None:
        if start_method not in START_METHODS:
            raise ConfigurationError(f"start_method={start_method!r} is not allowed; allowed: {', '.join(START_METHODS)}")
        if bucket_cap_mb is not None and not bucket_cap_mb > 0:
            raise ConfigurationError(f"bucket_cap_mb={bucket_cap_mb!r} is not allowed; allowed: a size above 0 in MiB, or None")
        if uneven not in ("drop", "pad", "join", None):
            raise ConfigurationError(f"uneven={uneven!r} is not allowed; allowed: 'drop', 'pad', 'join', None")
        check_hook(comm_hook, comm_state)
        self.start_method = start_method
        self.find_unused_parameters, self.static_graph = find_unused_parameters, static_graph
        self.gradient_as_bucket_view, self.broadcast_buffers = gradient_as_bucket_view, broadcast_buffers
        self.bucket_cap_mb, self.sync_batchnorm = bucket_cap_mb, sync_batchnorm
        self.comm_hook, self.comm_state = comm_hook, comm_state
        self.timeout = group.duration(timeout_s if timeout is None else timeout)
        self.process_group_backend, self.uneven = process_group_backend, uneven
        self.stop_timeout = group.duration(stop_timeout_s, "stop_timeout_s")
        self._wrapped: DistributedDataParallel | None = None
        self._stepping: StepModule | None = None
        self._synced = Synced()

    def connect(
        self, accelerator: Accelerator, devices: Sequence[torch.device], num_nodes: int, environment: ClusterEnvironment | None
    ) -> None:
        """Find out which rank this process has, or that it has to start the others.

        Raises:
            ConfigurationError: The scheduler has started another number of processes, or several nodes do not know of each
                other.
        """
        self._devices = list(devices)
        self.launcher = None
        if environment is not None and environment.creates_processes_externally:
            self._place = place_in(environment, self._devices, num_nodes)
            if isinstance(environment, LaunchedEnvironment):
                self.launcher = ScriptLauncher(self)
                follow_parent()
            elif self._place.world_size > 1:
                self.launcher = ExternalLauncher(self)
        else:
            self._place = own_place(self._devices, num_nodes)
            if self._place.world_size > 1:
                method = choose_start_method(self.start_method, self._devices)
                self.launcher = ScriptLauncher(self) if method == "popen" else ProcessLauncher(self, method)

    @property
    def num_local(self) -> int:
        """How many ranks this node has."""
        return len(self._devices)

    def join(self, place: Place) -> None:
        """Take a place that a launcher has given to this process. For launchers."""
        self._place, self.launcher = place, None

    @property
    def root_device(self) -> torch.device:
        """The device of this process."""
        return self._devices[self._place.local_rank if len(self._devices) > self._place.local_rank else 0]

    def setup_environment(self) -> None:
        """Join the process group, which then lives as long as the process: later runs use it too."""
        if self.world_size > 1:
            group.join(self._place, self.process_group_backend or group.backend_for(self.root_device), self.timeout)

    def teardown(self) -> None:
        """Let go of the module. The process group stays, for what is saved or run afterwards."""
        self._synced.undo()
        self._wrapped = self._stepping = None
        self.__dict__.pop("backward", None)

    # ---- Ranks

    @property
    def place(self) -> Place:
        """Where this process stands among all."""
        return self._place

    @property
    def world_size(self) -> int:
        """How many processes take part."""
        return self._place.world_size

    @property
    def global_rank(self) -> int:
        """The index of this process among all, from 0."""
        return self._place.global_rank

    @property
    def local_rank(self) -> int:
        """The index of this process on its node."""
        return self._place.local_rank

    @property
    def node_rank(self) -> int:
        """The index of this node."""
        return self._place.node_rank

    # ---- Modules and steps

    def setup_module(self, module: nn.Module) -> nn.Module:
        """``module`` on its device, with the weights of rank 0 on every rank; outside a trainer as a DDP module."""
        if self.sync_batchnorm and self.world_size > 1:
            self._synced.convert(module, self.root_device)
        module = module.to(self.root_device)
        if self.world_size == 1:
            return module
        if isinstance(module, Module) and self._is_trained_by_trainer(module):
            group.broadcast_tensors([*module.parameters(), *module.buffers()])
            return module
        return self._wrap(module)

    def _is_trained_by_trainer(self, module: Module) -> bool:
        try:
            return module.trainer.runtime.strategy is self
        except ModuleError:
            return False

    def wrap_step(self, module: Module, name: str, step: Step) -> Step:
        """``training_step`` as the forward pass of a DDP module; other steps as they are.

        With manual optimization, gradients are averaged after each backward pass instead: a step may have several.
        """
        if name != "training_step" or self.world_size == 1 or not any(p.requires_grad for p in module.parameters()):
            return step
        if not module.automatic_optimization:
            self.backward = self._backward_and_average  # type: ignore[method-assign]
            return step
        self._stepping = StepModule(module, step, self)
        self._wrapped = self._wrap(self._stepping)
        name = {"spawn": "ddp_spawn", "fork": "ddp_fork"}.get(self.start_method, "ddp")
        look = f"Use strategy='{name}_find_unused_parameters_true', or freeze those that are never used"
        return naming_unused(self._wrapped, module, "" if self.find_unused_parameters else look)

    def _wrap(self, module: nn.Module) -> DistributedDataParallel:
        on_gpu = self.root_device.type == "cuda"
        options: dict[str, Any] = {} if self.bucket_cap_mb is None else {"bucket_cap_mb": self.bucket_cap_mb}
        if not self.broadcast_buffers:  # torch 2.13 has renamed it, and warns of the old name
            known = inspect.signature(DistributedDataParallel.__init__).parameters
            options["forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"] = False
        wrapped = DistributedDataParallel(
            module,
            device_ids=[self.root_device.index] if on_gpu else None,
            find_unused_parameters=self.find_unused_parameters,
            static_graph=self.static_graph,
            gradient_as_bucket_view=self.gradient_as_bucket_view,
            **options,
        )
        group.uses_group(wrapped)
        if self.comm_hook is not None:
            register_hook(wrapped, self.comm_hook, self.comm_state)
        return wrapped

    def prepare_evaluation(self, module: nn.Module) -> None:
        """Let every rank have the buffers of rank 0, which are those of a checkpoint: evaluation is no forward pass of DDP."""
        if self.broadcast_buffers and not self._is_alone:
            group.broadcast_together(list(module.buffers()))

    def settle_stand_ins(self) -> tuple[int, bool]:
        """For how many of these batches no rank had a loss, and whether the losses of the others are sums with weights."""
        assert self._stepping is not None  # it has made the stand-ins
        return self._stepping.stand_ins.settle()

    def _backward_and_average(self, module: nn.Module, loss: Tensor) -> None:
        loss.backward()
        group.average([p.grad for p in module.parameters() if p.grad is not None])

    def no_sync(self, module: nn.Module) -> AbstractContextManager[Any] | None:
        """A context in which gradients stay on this rank."""
        wrapped = module if isinstance(module, DistributedDataParallel) else self._wrapped
        return None if wrapped is None else wrapped.no_sync()

    def sampler_arguments(self) -> dict[str, int] | None:
        """The number of ranks and this one."""
        return {"num_replicas": self.world_size, "rank": self.global_rank} if self.world_size > 1 else None

    # ---- Collectives

    @property
    def _is_alone(self) -> bool:
        """Whether nobody else is there: also before the others are joined, and in the process that has started all ranks."""
        return self._place.world_size == 1 or not dist.is_initialized()

    def all_reduce(self, tensor: Tensor, op: ReduceOp = "sum") -> Tensor:
        """``tensor`` combined over all ranks, on every rank. A new tensor."""
        return tensor if self._is_alone else group.all_reduce(tensor, op)

    def all_gather(self, tensor: Tensor) -> Tensor:
        """The tensors of all ranks, stacked: ``[world_size, *tensor.shape]``. They must have the same shape."""
        return tensor.unsqueeze(0) if self._is_alone else group.all_gather(tensor)

    def all_gather_with_gradient(self, tensor: Tensor) -> Tensor:
        """The same, through which gradients flow. Every rank must then compute them."""
        return tensor.unsqueeze(0) if self._is_alone else group.all_gather_with_gradient(tensor)

    def broadcast(self, value: T, source: int = 0) -> T:
        """The plain value or tensor of rank ``source``, on every rank."""
        return value if self._is_alone else group.broadcast(value, source)

    def barrier(self, name: str = "") -> None:
        """Wait until every rank is here; after ``timeout_s`` an error that names those that are not."""
        if not self._is_alone:
            group.barrier(name)

    def agree(self, flags: int) -> int:
        """The bitwise *or* of the integers of all ranks. Through the host: no device is waited for."""
        return flags if self._is_alone else group.agree(flags)

    # ---- State

    def module_state(self, module: nn.Module) -> dict[str, Any]:
        """The ``state_dict`` of the module itself."""
        return original(module).state_dict()

    def load_module_state(self, module: nn.Module, state: dict[str, Any], strict: bool = True) -> Any:
        """Put it back."""
        return original(module).load_state_dict(state, strict=strict)

    def __getstate__(self) -> dict[str, Any]:
        """The strategy as a new process gets it: without the module of an earlier run."""
        return {
            **{key: value for key, value in self.__dict__.items() if key != "backward"},
            "_wrapped": None,
            "_stepping": None,
            "_synced": Synced(),
        }


def original(module: nn.Module) -> nn.Module:
    """The module that DDP wraps."""
    return module.module if isinstance(module, DistributedDataParallel) else module
