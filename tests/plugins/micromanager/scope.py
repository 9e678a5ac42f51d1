"""Microscopes for the tests: a known specimen under Python devices of pymmcore-plus, and Micro-Manager's own.

The specimen is given in stage coordinates, µm, and the camera looks at it through any affine: nothing here knows where
a mosaic puts a frame.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mm_test_adapters
import numpy as np
from numpy.typing import NDArray
from pymmcore_plus import CMMCorePlus
from pymmcore_plus.experimental.unicore import (
    SimpleCameraDevice,
    StageDevice,
    StateDevice,
    UniMMCore,
    XYStageDevice,
)

#: Edge of a square of the specimen that has one value, µm.
GRAIN_UM = 0.5

Affine = tuple[tuple[float, float], tuple[float, float]]


class Specimen:
    """Noise in squares of `GRAIN_UM`, from −256 to 256 µm; brighter in other channels, and with depth."""

    def __init__(self, seed: int = 7) -> None:
        n = round(512 / GRAIN_UM)
        self.grains = np.random.default_rng(seed).integers(1, 20_000, (n, n), np.uint16)  # y, x

    def seen(self, x_um: NDArray[Any], y_um: NDArray[Any], channel: int = 0, z_um: float = 0.0) -> NDArray[np.uint16]:
        """What is at these places of the stage."""
        column = np.floor(x_um / GRAIN_UM).astype(int) + self.grains.shape[1] // 2
        row = np.floor(y_um / GRAIN_UM).astype(int) + self.grains.shape[0] // 2
        return (self.grains[row, column] + 20_000 * channel + round(100 * z_um)).astype(np.uint16)


class StageXY(XYStageDevice):
    """It is where it was sent; with `longest_sequence` it can be sent along a sequence by the camera's triggers."""

    def __init__(self, longest_sequence: int = 0) -> None:
        super().__init__()
        self.at_um = (0.0, 0.0)
        self.longest_sequence = longest_sequence
        self.to_come: list[tuple[float, float]] = []
        self.sequence: tuple[tuple[float, float], ...] = ()

    def get_sequence_max_length(self) -> int:
        return self.longest_sequence

    def send_sequence(self, sequence: tuple[tuple[float, float], ...]) -> None:
        self.sequence = sequence

    def start_sequence(self) -> None:
        self.to_come = list(self.sequence)

    def stop_sequence(self) -> None:
        self.to_come = []

    def trigger(self) -> None:
        """What the camera sends when an exposure begins."""
        if self.to_come:
            self.at_um = self.to_come.pop(0)

    def set_position_um(self, x: float, y: float) -> None:
        self.at_um = (x, y)

    def get_position_um(self) -> tuple[float, float]:
        return self.at_um

    def set_origin_x(self) -> None:
        raise NotImplementedError

    def set_origin_y(self) -> None:
        raise NotImplementedError

    def home(self) -> None:
        self.at_um = (0.0, 0.0)

    def stop(self) -> None:
        pass


class StageZ(StageDevice):
    """The same for the focus."""

    def __init__(self) -> None:
        super().__init__()
        self.at_um = 0.0

    def set_position_um(self, val: float) -> None:
        self.at_um = val

    def get_position_um(self) -> float:
        return self.at_um

    def set_origin(self) -> None:
        raise NotImplementedError

    def home(self) -> None:
        self.at_um = 0.0

    def stop(self) -> None:
        pass


class FilterWheel(StateDevice):
    """Two channels."""

    def __init__(self) -> None:
        super().__init__({0: "DAPI", 1: "FITC"})
        self.state = 0

    def get_state(self) -> int:
        return self.state

    def set_state(self, position: int) -> None:
        self.state = position


class Camera(SimpleCameraDevice):
    """Sees the specimen around where the stage is, through an affine."""

    def __init__(self, specimen: Specimen, xy: StageXY, z: StageZ, filters: FilterWheel, affine: Affine) -> None:
        super().__init__()
        self.specimen, self.xy, self.z, self.filters, self.affine = specimen, xy, z, filters, affine
        self.exposure_ms = 5.0
        self.full_shape: tuple[int, ...] = (64, 96)

    def sensor_shape(self) -> Any:
        return self.full_shape

    def dtype(self) -> Any:
        return np.uint16

    def get_exposure(self) -> float:
        return self.exposure_ms

    def set_exposure(self, exposure: float) -> None:
        self.exposure_ms = exposure

    def snap(self, buffer: NDArray[Any]) -> Mapping[str, Any]:
        self.xy.trigger()
        height, width = buffer.shape[:2]
        dx = (np.arange(width) + 0.5 - width / 2)[None, :]
        dy = (np.arange(height) + 0.5 - height / 2)[:, None]
        (a, b), (c, d) = self.affine
        x_um, y_um = self.xy.at_um
        seen = self.specimen.seen(x_um + a * dx + b * dy, y_um + c * dx + d * dy, self.filters.state, self.z.at_um)
        buffer[...] = seen if buffer.ndim == 2 else seen[..., None]
        return {}


class Scope:
    """A UniMMCore with these devices.

    Parameters
    ----------
    affine : Affine
        How the camera really looks at the stage.
    tell_affine : bool
        Whether the core's pixel size configuration knows it.
    longest_sequence : int
        Positions that the stage can be sent along by triggers.
    """

    def __init__(
        self,
        affine: Affine = ((0.5, 0.0), (0.0, -0.5)),
        *,
        tell_affine: bool = True,
        longest_sequence: int = 0,
    ) -> None:
        self.specimen = Specimen()
        self.xy, self.z, self.filters = StageXY(longest_sequence), StageZ(), FilterWheel()
        self.camera = Camera(self.specimen, self.xy, self.z, self.filters, affine)
        self.core = core = UniMMCore()
        for label, device in (("Camera", self.camera), ("XY", self.xy), ("Z", self.z), ("Filters", self.filters)):
            core.loadPyDevice(label, device)
        core.initializeAllDevices()
        core.setCameraDevice("Camera")
        core.setXYStageDevice("XY")
        core.setFocusDevice("Z")
        core.setAutoShutter(False)  # there is none
        for channel in ("DAPI", "FITC"):
            core.defineConfig("Channel", channel, "Filters", "Label", channel)
        core.setChannelGroup("Channel")
        core.definePixelSizeConfig("20x")
        core.setPixelSizeUm("20x", 0.5)
        if tell_affine:
            (a, b), (c, d) = affine
            core.setPixelSizeAffine("20x", [a, b, 0.0, c, d, 0.0])
        engine = core.mda.engine
        assert engine is not None
        engine.restore_initial_state = False  # it warns of the focus drive, which cannot hit anything here


def demo_core() -> CMMCorePlus:
    """Micro-Manager's C++ demo devices, with fluorescent beads under the stage, 1 µm per pixel."""
    core = CMMCorePlus()
    core.setDeviceAdapterSearchPaths([mm_test_adapters.device_adapter_path()])
    core.loadSystemConfiguration("MMConfig_demo.cfg")
    core.setProperty("Objective", "Label", "Nikon 10X S Fluor")  # Res10x: 1 µm
    for name, value in {
        "PixelType": "16bit",
        "BitDepth": "16",
        "Mode": "Fluorescent Beads",
        "BeadDensity": "400",
        "Photon Flux": "2000",
        "OnCameraCCDXSize": "256",
        "OnCameraCCDYSize": "192",
    }.items():
        core.setProperty("Camera", name, value)
    engine = core.mda.engine
    assert engine is not None
    engine.restore_initial_state = False
    return core
