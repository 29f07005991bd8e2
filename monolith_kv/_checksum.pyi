import numpy as np
from numpy.typing import NDArray
from typing_extensions import Buffer

def crc32c(data: Buffer, value: int = 0) -> int: ...

# Of the first `size` bytes of each row.
def crc32c_each(rows: NDArray[np.uint8], size: int, value: int) -> NDArray[np.uint32]: ...
