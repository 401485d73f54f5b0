"""What every logger must do."""

from __future__ import annotations

import shutil

import pytest
from mlflow import MlflowClient

from fulmen.loggers import MLFlowLogger
from fulmen.testing.conformance import LoggerSuite


@pytest.mark.filterwarnings(r"ignore:\[mlflow-infinite\]")
class TestMLFlowLogger(LoggerSuite):
    name = "mlflow"
    keeps_hyperparams = True
    rewinds = False  # MLflow cannot take metrics back

    @pytest.fixture(autouse=True)
    def _tables(self, empty_database, tmp_path_factory):
        self.database = tmp_path_factory.mktemp("store") / "store.db"
        shutil.copy(empty_database, self.database)

    def make(self, folder):
        return MLFlowLogger(
            tracking_uri=f"sqlite:///{self.database}", save_dir=folder, artifact_location=str(self.database.parent)
        )

    def read_back(self, part, folder):
        client = MlflowClient(part.tracking_uri)
        names = client.get_run(part.version).data.metrics
        return [
            {"step": each.step, name: each.value} for name in names for each in client.get_metric_history(part.version, name)
        ]

    def read_hyperparams(self, part, folder):
        return MlflowClient(part.tracking_uri).get_run(part.version).data.params
