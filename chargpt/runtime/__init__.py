"""How a process behaves: errors in one line, signals, progress, threads and torchrun."""

import os

# GNU OpenMP's threads wait for one another in a busy loop, for milliseconds. Beside any other program, this made
# training 25 times slower. With this setting, a thread sleeps after 10000 rounds, which take tens of microseconds.
# On an idle machine it costs nothing.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # must be set before torch is loaded, which reads it once
