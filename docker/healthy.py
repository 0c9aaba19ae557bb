#!/usr/bin/python3 -I
"""Exit code 0 when the component is healthy: healthy metadatabase|scheduler|dag_processor|triggerer [URL].

The api-server knows, from the components' heartbeats in the database, and answers in milliseconds; `airflow jobs
check` would import Airflow for seconds each time.
"""

import json
import sys
import urllib.request


def main() -> int:
    component = sys.argv[1]
    url = sys.argv[2] if len(sys.argv) > 2 else "http://api-server:8080"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # it is a neighbour: no proxy in between
    try:
        with opener.open(f"{url}/api/v2/monitor/health", timeout=5) as answer:
            status = json.load(answer)[component]["status"]
    except (OSError, ValueError, KeyError) as error:
        status = error
    print(status)
    return 0 if status == "healthy" else 1


if __name__ == "__main__":
    raise SystemExit(main())
