"""Print what sanitizers have reported into a folder, and how much: `python reports.py FOLDER`.

Of what a process still has at its end only memory counts that an extension of ours allocated: the
interpreter and other libraries leave theirs to the system. Exits with 1 if anything counts.
"""

import re
import sys
from pathlib import Path

# An allocation by one of ours: the frame right above the allocator's, by its source.
OWN_LEAK = re.compile(r"leak of .*\n.*#0 .*\n.*#1 .*(?:/monolith_kv/_\w+\.c|bait\.c):\d+")
LEAKS = "ERROR: LeakSanitizer"


def main(folder: Path) -> int:
    count = 0
    for path in sorted(folder.iterdir()):
        errors, _, leaks = path.read_text(errors="replace").partition(LEAKS)
        own = [leak for leak in leaks.split("\n\n") if OWN_LEAK.search(leak)]
        found = len(re.findall(r"^SUMMARY|runtime error:", errors, re.MULTILINE)) + len(own)
        if found:
            print(f"--- {path.name}", errors.rstrip("\n="), *own, sep="\n")
        count += found
    print(f"{count} reports of sanitizers")
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
