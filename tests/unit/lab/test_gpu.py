"""What the lab's stand-in for NVIDIA's programs makes of layouts and of shared GPUs."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

SOURCE = Path(__file__).resolve().parents[3] / "molecule/lab/platform/gpu_operator/files/opt/gpu/node.py"


@pytest.fixture(scope="module")
def node() -> ModuleType:
    spec = importlib.util.spec_from_file_location("lab_gpu_node", SOURCE)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.proves("lab-gpu")
def test_slices_take_the_place_of_the_gpus_that_are_cut(node: ModuleType) -> None:
    entries = [
        {"devices": [0, 1, 2, 3, 4, 5], "mig-enabled": False},
        {"devices": [6, 7], "mig-enabled": True, "mig-devices": {"1g.10gb": 6, "1g.10gb+me": 1}},
    ]
    assert node.cut(entries) == {"nvidia.com/gpu": 6, "nvidia.com/mig-1g.10gb": 12, "nvidia.com/mig-1g.10gb.me": 2}
    assert node.cut([{"devices": "all", "mig-enabled": False}]) == {"nvidia.com/gpu": 8}
    with pytest.raises(ValueError, match="no device 8"):
        node.cut([{"devices": [8], "mig-enabled": False}])


@pytest.mark.proves("lab-gpu")
def test_shared_slices_are_renamed_only_when_asked_and_lost_without_their_strategy(node: ModuleType) -> None:
    resources = {"nvidia.com/gpu": 7, "nvidia.com/mig-1g.10gb": 7}
    sharing = {"resources": [{"name": "nvidia.com/mig-1g.10gb", "replicas": 2}]}
    config = {"flags": {"migStrategy": "mixed"}, "sharing": {"timeSlicing": sharing}}
    assert node.share(resources, config) == {"nvidia.com/gpu": 7, "nvidia.com/mig-1g.10gb": 14}
    sharing["renameByDefault"] = True  # type: ignore[assignment]
    assert node.share(resources, config) == {"nvidia.com/gpu": 7, "nvidia.com/mig-1g.10gb.shared": 14}
    assert node.share(resources, {"flags": {}}) == {"nvidia.com/gpu": 7}
