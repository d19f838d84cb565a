"""Print the oldest versions of the dependencies that pyproject.toml allows, for pip install -r."""

import re
import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
for line in project["dependencies"]:
    found = re.fullmatch(r"([\w.-]+)>=([\w.]+)", line)
    if found is None:
        sys.exit(f"{line}: a dependency has a least version and nothing else")
    sys.stdout.write(f"{found[1]}=={found[2]}\n")
