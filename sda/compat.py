"""Ways round the defects of dependencies.

azula depends on torchvision, whose wheel from the package index is built for CUDA and does not
import beside a CPU build of torch (`operator torchvision::nms does not exist`). Nothing here uses
it, but torchmetrics, and with it Lightning, imports it where it is installed.
"""

import importlib
import re

import torch

_libraries: list[torch.library.Library] = []


def import_lightning() -> None:
    """Imports Lightning, declaring the operators that a mismatched torchvision misses."""

    for _ in range(8):
        try:
            importlib.import_module("torchvision")
            break
        except ImportError:
            break
        except RuntimeError as error:
            missing = re.search(r"operator torchvision::(\w+) does not exist", str(error))
            if missing is None:
                raise
            library = torch.library.Library("torchvision", "FRAGMENT")
            library.define(
                f"{missing[1]}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            )
            _libraries.append(library)
    importlib.import_module("lightning.pytorch")
