"""Score-based data assimilation: calibrated posterior ensembles from a learned prior.

The public names are imported when they are first used, so that `import sda` costs little.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .assimilation import assimilate as assimilate
    from .benchmarks.runner import benchmark as benchmark
    from .climatology import Climatology as Climatology
    from .costs import cost as cost
    from .data import NoiseLevels as NoiseLevels
    from .filtering import Assimilator as Assimilator
    from .forecasting import forecast as forecast
    from .model_forecast import forecast_by_model as forecast_by_model
    from .observation import Observations as Observations
    from .observation import observe as observe
    from .polish import polish as polish
    from .prior import GaussianPrior as GaussianPrior
    from .prior import Prior as Prior
    from .symmetry import Symmetry as Symmetry
    from .training import TrainingOptions as TrainingOptions
    from .training import train as train
    from .verification import summary as summary
    from .verification import verify as verify

PUBLIC = {
    "Assimilator": "filtering",
    "assimilate": "assimilation",
    "benchmark": "benchmarks.runner",
    "cost": "costs",
    "Climatology": "climatology",
    "GaussianPrior": "prior",
    "NoiseLevels": "data",
    "Observations": "observation",
    "Prior": "prior",
    "Symmetry": "symmetry",
    "TrainingOptions": "training",
    "forecast": "forecasting",
    "forecast_by_model": "model_forecast",
    "observe": "observation",
    "polish": "polish",
    "summary": "verification",
    "train": "training",
    "verify": "verification",
}

MODULES = (
    "classical", "guidance", "observation", "plotting", "report", "sampling", "verification",
)  # fmt: skip

__all__ = sorted((*PUBLIC, *MODULES))


def __getattr__(name: str) -> Any:
    if name in PUBLIC:
        value = getattr(importlib.import_module(f"{__name__}.{PUBLIC[name]}"), name)
        globals()[name] = value
        return value
    if name in MODULES:
        return importlib.import_module(f"{__name__}.{name}")

    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
