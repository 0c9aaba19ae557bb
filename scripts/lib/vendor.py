"""Copies the files of npm packages that the page loads, and notes where each came from and what it must be."""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
from pathlib import Path

FILES = {
    "htmx.org": {"dist/htmx.min.js": "htmx.min.js", "LICENSE": "htmx.LICENSE"},
    "uplot": {
        "dist/uPlot.iife.min.js": "uPlot.iife.min.js",
        "dist/uPlot.min.css": "uPlot.min.css",
        "LICENSE": "uPlot.LICENSE",
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--from", dest="source", type=Path, required=True)
    parser.add_argument("--lock", type=Path, required=True)
    parser.add_argument("--to", type=Path, required=True)
    options = parser.parse_args()
    locked = json.loads(options.lock.read_text())["packages"]
    shutil.rmtree(options.to, ignore_errors=True)
    options.to.mkdir(parents=True)
    origins = {}
    for package, files in FILES.items():
        entry = locked[f"node_modules/{package}"]
        for source, name in files.items():
            content = (options.source / package / source).read_bytes()
            (options.to / name).write_bytes(content)
            origins[name] = {
                "package": package,
                "version": entry["version"],
                "integrity": entry["integrity"],
                "file": source,
                "sha256": hashlib.sha256(content).hexdigest(),
            }
    (options.to / "origins.json").write_text(json.dumps(origins, indent=2) + "\n")
    print(f"{len(origins)} files in {options.to}")


if __name__ == "__main__":
    main()
