"""The edge: everything that talks to people, git, DVC, signals and the terminal. Nothing further in imports it."""

import os

# GNU OpenMP's threads spin for milliseconds when one waits for another. Beside any other program that made training
# 25 times slower; after this many rounds (tens of microseconds) they sleep, which costs nothing on an idle machine.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # read once, when torch is loaded
