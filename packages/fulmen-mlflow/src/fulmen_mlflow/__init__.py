"""Keep fulmen trainings in MLflow.

>>> from fulmen_mlflow import MLFlowLogger
>>> logger = MLFlowLogger("digits", tracking_uri="http://127.0.0.1:5000")
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fulmen.lazy import attributes

if TYPE_CHECKING:
    from fulmen_mlflow.logger import MLFlowLogger
    from fulmen_mlflow.unsent import send_unsent

__all__ = ["MLFlowLogger", "send_unsent"]

__getattr__, __dir__ = attributes(__name__, {"MLFlowLogger": "logger", "send_unsent": "unsent"})
