"""A stand-in for `docker run`: it starts the command with nothing of ours that was not handed in.

    python container.py run --rm -i --init -v A:A -e NAME IMAGE python3 ARGUMENTS

Like the real one it refuses what it does not know, leads the command into a session that our signals do not reach,
passes standard input on, and stays behind when its client is killed: only an end of standard input tells. What it was
told is written to $CONTAINER_LOG.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

SINGLE = {"--rm", "-i", "--init"}


def main(words: list[str]) -> int:
    assert words.pop(0) == "run"
    mounts, names = [], []
    while words[0].startswith("-"):
        word = words.pop(0)
        if word == "-v":
            place, _, inside = words.pop(0).partition(":")
            assert place == inside
            assert Path(place).is_dir(), f"{place} does not exist"
            mounts.append(place)
        elif word == "-e":
            names.append(words.pop(0))
        else:
            assert word in SINGLE, f"unknown flag: {word}"
    assert words.pop(0) == "IMAGE"
    Path(os.environ["CONTAINER_LOG"]).write_text(json.dumps({"mounts": mounts, "names": names}))
    inside = {name: os.environ[name] for name in names} | {"PATH": os.environ["PATH"]}
    # Two processes, as an init and its child: the worker leads neither a session nor, at first, a group.
    script = "import subprocess, sys; sys.exit(subprocess.run(sys.argv[1:]).returncode)"
    return subprocess.run([sys.executable, "-c", script, *words], env=inside, start_new_session=True).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
