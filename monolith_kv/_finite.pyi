import numpy as np
from numpy.typing import NDArray

def is_finite(values: NDArray[np.float32]) -> bool: ...
