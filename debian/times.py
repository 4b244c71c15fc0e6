"""Set the time of each file to a value that depends on its content, in the year before SOURCE_DATE_EPOCH."""

import hashlib
import os
import sys
from pathlib import Path

YEAR = 365 * 86400  # seconds

newest = int(os.environ["SOURCE_DATE_EPOCH"])
for name in sys.argv[1:]:
    digest = hashlib.sha256(Path(name).read_bytes()).digest()
    time = newest - int.from_bytes(digest[:8], "big") % YEAR
    os.utime(name, (time, time))
