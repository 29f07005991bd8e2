import numpy as np
from numpy.typing import NDArray

def copy_rows(
    rows: NDArray[np.float32],
    positions: NDArray[np.int64],
    out: NDArray[np.float32],
    ahead: int = 32,
    is_once: bool = False,
) -> None: ...
def scatter_rows(
    rows: NDArray[np.float32], positions: NDArray[np.int64], values: NDArray[np.float32]
) -> None: ...
def step_rows(
    rows: NDArray[np.float32],
    accumulators: NDArray[np.float32],
    positions: NDArray[np.int64],
    gradients: NDArray[np.float32],
    lr: float,
) -> None: ...
def step_sums(
    rows: NDArray[np.float32],
    accumulators: NDArray[np.float32],
    positions: NDArray[np.int64],
    starts: NDArray[np.int64],
    order: NDArray[np.int64],
    gradients: NDArray[np.float32],
    lr: float,
) -> None: ...
