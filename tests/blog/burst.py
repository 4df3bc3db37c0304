"""Writes to one blog from many threads: `python -m tests.blog.burst NAME THREADS EACH`.

Each thread adds tags of its own, and one that all of them want. Prints how often each code came.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from blog import create_app
from pkg.setting import load
from tests.blog.api import Api


def burst(api: Api, name: str, threads: int, each: int) -> Counter[int]:
    def work(thread: int) -> list[int]:
        codes = [api("POST", "/tags", name="shared", created_by=name).code]
        for number in range(each):
            tag = f"{name} {thread} {number}"
            codes.append(api("POST", "/tags", name=tag, created_by=name).code)
            codes.append(api("GET", "/tags", name=tag).data["total"])
        return codes

    with ThreadPoolExecutor(threads) as pool:
        return Counter(code for codes in pool.map(work, range(threads)) for code in codes)


if __name__ == "__main__":
    # The result goes to standard output, so the access log must not.
    result, sys.stdout = sys.stdout, open(os.devnull, "w")
    blog = Api(create_app(load()), Path.cwd())
    json.dump(burst(blog, sys.argv[1], int(sys.argv[2]), int(sys.argv[3])), result)
    blog.close()
