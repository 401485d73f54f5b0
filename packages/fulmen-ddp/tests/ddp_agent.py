"""torchrun's agent with workers that it forks, which starts sooner: ``ddp_agent.py RANKS RESTARTS`` and what ddp_job takes."""

from __future__ import annotations

import sys
import tempfile

from ddp_job import main
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, record
from torch.distributed.launcher.api import LaunchConfig, elastic_launch


@record
def launch(ranks: int, restarts: int, *arguments: str) -> None:
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=ranks, max_restarts=restarts, monitor_interval=0.1, start_method="fork",
        rdzv_backend="c10d", rdzv_endpoint="127.0.0.1:0", run_id="test", logs_specs=DefaultLogsSpecs(tempfile.mkdtemp()),
    )  # fmt: skip
    elastic_launch(config, main)(*arguments, ranks)


if __name__ == "__main__":
    try:
        launch(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
    except ChildFailedError as error:
        print(error)
        sys.exit(1)
