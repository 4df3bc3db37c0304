"""Changes to one blog from many threads: `python -m tests.blog.hammer THREADS EACH`.

All threads of all processes want the same few names, and the newest rows, whoever made them.
Prints how many tags and articles this process has added and deleted, and what went wrong.
"""

from __future__ import annotations

import json
import os
import random
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from blog import create_app
from pkg.e import Code
from pkg.setting import load
from tests.blog.api import Answer, Api

NAMES = ["go", "Go ", "python", "C"]
LOGIN = "/auth?username=test&password=test123456"

# What an answer may be beside success: somebody else was faster.
LATE = {
    ("POST", "tags"): {Code.ERROR_EXIST_TAG},
    ("PUT", "tags"): {Code.ERROR_NOT_EXIST_TAG},
    ("DELETE", "tags"): {Code.ERROR_NOT_EXIST_TAG},
    ("POST", "articles"): {Code.ERROR_NOT_EXIST_TAG},
    ("PUT", "articles"): {Code.ERROR_NOT_EXIST_TAG, Code.ERROR_NOT_EXIST_ARTICLE},
    ("DELETE", "articles"): {Code.ERROR_NOT_EXIST_ARTICLE},
    ("GET", "articles"): {Code.ERROR_NOT_EXIST_ARTICLE},
}


class Hammer:
    def __init__(self, api: Api) -> None:
        self._api = api
        self.changes: Counter[str] = Counter()
        self.wrong: list[str] = []

    def work(self, each: int) -> None:
        for _ in range(each):
            name = random.choice(NAMES)
            self._ask("POST", "/tags", name=name, created_by="me")
            found = self._ask("GET", "/tags", name=name).data
            if found["total"] > 1:
                self.wrong.append(f"{found['total']} tags {name!r}")
            for tag in found["lists"]:
                self._ask("PUT", f"/tags/{tag['id']}", modified_by="me", state=0)
                self._work_on_articles(tag["id"])
                self._ask("DELETE", f"/tags/{tag['id']}")

    def _work_on_articles(self, tag: int) -> None:
        texts = {"title": "t", "desc": "d", "content": "c"}
        self._ask("POST", "/articles", tag_id=tag, created_by="me", **texts)
        for article in self._ask("GET", "/articles", tag_id=tag).data["lists"]:
            target = f"/articles/{article['id']}"
            self._ask("PUT", target, tag_id=tag, modified_by="me", state=1, title="u")
            self._ask("GET", target)
            self._ask("DELETE", target)

    def _ask(self, method: str, path: str, **params: object) -> Answer:
        answer = self._api(method, path, **params)
        kind = path.split("/")[1]
        if answer.code == Code.SUCCESS:
            self.changes[f"{method} {kind}"] += 1
        elif answer.code not in LATE.get((method, kind), ()):
            self.wrong.append(f"{method} {path}: {answer.body.decode()}")
        return answer


def main(threads: int, each: int) -> None:
    # The result goes to standard output, so the access log must not.
    result, sys.stdout = sys.stdout, open(os.devnull, "w")
    api = Api(create_app(load()), Path.cwd())
    hammer = Hammer(api)
    # Who finds the tables finds the first user in them.
    if (login := api.raw("GET", LOGIN)).code != Code.SUCCESS:
        hammer.wrong.append(f"login: {login.body.decode()}")
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(hammer.work, [each] * threads):
            pass
    json.dump({"changes": hammer.changes, "wrong": hammer.wrong}, result)
    api.close()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
