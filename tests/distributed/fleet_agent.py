"""torchrun's agent for one node, with ranks that come from a server that has torch already: they start at once."""

from __future__ import annotations

import multiprocessing
import sys
import tempfile

import fleet_job
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch


def main(restarts, settings):
    multiprocessing.set_forkserver_preload(["fleet_job", "torch._dynamo", "fulmen_ddp.strategy"])
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=2, max_restarts=restarts, monitor_interval=0.1, start_method="forkserver",
        rdzv_backend="c10d", rdzv_endpoint="127.0.0.1:0", run_id="fleet", logs_specs=DefaultLogsSpecs(tempfile.mkdtemp()),
    )  # fmt: skip
    try:
        elastic_launch(config, fleet_job.main)(settings)
    except ChildFailedError as error:
        print(error)
        sys.exit(1)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
