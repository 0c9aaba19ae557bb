"""Waits until every component of an Airflow says that it is healthy: health.py URL SECONDS."""

import json
import sys
import time
import urllib.request

COMPONENTS = ("metadatabase", "scheduler", "dag_processor", "triggerer")


def sick(url: str) -> str:
    """What is not healthy yet, in words; empty when all is well."""
    # The api-server is on this machine: a proxy from the environment has no part in it.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{url}/api/v2/monitor/health", timeout=5) as answer:
            health = json.load(answer)
    except (OSError, ValueError) as error:
        return f"api-server ({error})"
    return ", ".join(c for c in COMPONENTS if (health.get(c) or {}).get("status") != "healthy")


def main() -> int:
    url, deadline = sys.argv[1], time.monotonic() + float(sys.argv[2])
    while what := sick(url):
        print(f"not healthy yet: {what}", flush=True)
        if time.monotonic() >= deadline:
            return 1
        time.sleep(0.5)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
