"""Make the mistakes of bait.c: `python bait.py LIBRARY NAME`. The sanitizer must report each."""

import ctypes
import sys
import threading

bait = ctypes.CDLL(sys.argv[1])
if sys.argv[2] == "race":
    threads = [threading.Thread(target=bait.bait_race) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
else:
    getattr(bait, f"bait_{sys.argv[2]}")(8)
