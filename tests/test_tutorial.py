"""The tutorial tells the truth: its commands are run, in order, and print what it says.

The two languages have the same blocks, so that one of them is run.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import pytest
from tutorial_runner import (
    Block,
    TutorialError,
    Values,
    copy_project,
    play,
    read_blocks,
    read_steps,
)

ROOT = Path(__file__).parent.parent
ENGLISH = ROOT / "docs/tutorial.md"
CHINESE = ROOT / "docs/tutorial.zh.md"


def test_commands_print_what_the_tutorial_says(tmp_path: Path) -> None:
    if sys.platform != "linux":
        pytest.skip("the tutorial shows the signals of Linux")
    missing = [tool for tool in ("bash", "curl", "make") if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"the tutorial's commands need {', '.join(missing)}")
    directory = tmp_path / "flask-graceful"
    copy_project(ROOT, directory)
    before = project_files(directory)
    play(ENGLISH, directory)
    assert project_files(directory) == before


def project_files(directory: Path) -> dict[Path, bytes]:
    """All but what is made by running it."""
    made = {".venv", "runtime", "__pycache__"}
    files = (path for path in directory.rglob("*") if path.is_file())
    return {path: path.read_bytes() for path in files if not made & set(path.parts)}


def test_both_languages_have_the_same_blocks() -> None:
    english, chinese = ([(b.info, b.text) for b in read_blocks(d)] for d in (ENGLISH, CHINESE))
    assert english == chinese


@pytest.mark.parametrize("document", [ENGLISH, CHINESE], ids=["en", "zh"])
def test_listings_are_in_the_files(document: Path) -> None:
    listings = [b for b in read_blocks(document) if b.info.startswith("python ")]
    assert [b.info for b in listings] == ["python app.py", "python examples/shutdown.py"]
    for block in listings:
        source = (ROOT / block.info.removeprefix("python ")).read_text(encoding="utf-8")
        position = 0
        # A line of dots stands for what is left out.
        for part in re.split(r"^ *\.\.\.\n", block.text, flags=re.MULTILINE):
            assert part in source[position:], f"line {block.line}: not in the file:\n{part}"
            position = source.index(part, position) + len(part)


@pytest.mark.parametrize("document", [ENGLISH, CHINESE], ids=["en", "zh"])
def test_process_ids_in_the_text_are_those_of_the_output(document: Path) -> None:
    blocks = "".join(b.text for b in read_blocks(document))
    text = re.sub(r"^```.*?^```$", "", document.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    for pid in re.findall(r"`(?:kill (?:-\d+ )?)?(\d{3,})`", text):
        assert re.search(rf"\b{pid}\b", blocks), f"{pid} is in the text only"


@pytest.mark.parametrize("document", [ENGLISH, CHINESE], ids=["en", "zh"])
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", document.read_text(encoding="utf-8")):
        if not target.startswith("https://"):
            assert (document.parent / target).exists(), target


def test_a_step_is_a_command_and_its_output() -> None:
    steps = read_steps(Block("", "$ one\nout\n$ two\n^C done\n$\n", 10))
    assert [(s.line, s.command, s.interrupts, s.output) for s in steps] == [
        (10, "one", False, ["out", "$"]),
        (12, "two", False, []),
        (13, None, True, ["^C done", "$"]),
    ]
    with pytest.raises(TutorialError, match="line 10"):
        read_steps(Block("", "$ one\n...\n", 10))


@pytest.mark.parametrize(
    ("printed", "fits"),
    [
        ("Actual pid is 7\nmore\n7 closed :9 2/2\n", True),
        ("Actual pid is 7\n7  closed\t:9 2/2\n", True),
        ("Actual pid is 7\n8 closed :9 2/2\n", False),
        ("Actual pid is 7\n7 closed :8 2/2\n", False),
        ("Actual pid is 7\n7 closed :9 2/3\n", False),
        ("Actual pid is\n7 closed :9 2/2\n", False),
    ],
)
def test_output_fits_what_the_document_says(printed: str, fits: bool) -> None:
    text = "Actual pid is 4711\n...\n4711 closed :8000 2/2\n"
    values = Values([Block("", text, 1)], {"8000": "9"})
    match = values.pattern(text.splitlines()).match(re.sub(r"[ \t]+", " ", printed))
    assert bool(match) is fits
    if match:
        values.learn(match)
        assert values.substitute("kill 4711 :8000") == "kill 7 :9"
