# %% [markdown]
# # minires: how a GPU trains a network, in six lessons
#
# It takes some two minutes to run, and an afternoon to understand. With an NVIDIA GPU the kernels run there, compiled by
# NVRTC; without one, your C++ compiler (`g++` or `clang++`) compiles the same kernels for the CPU when they are first used,
# and nothing else is different. Beside it read the tour of the kernels, `kernels/README.md`; each lesson is a script too,
# `examples/lesson*.py`, and the exercises are `examples/exercises.cu`. This cell installs minires where it is missing.

# %%
import importlib.util
import site
import subprocess
import sys

if importlib.util.find_spec("minires") is None:
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--editable", ".."], check=True)
    site.main()  # finds what was just installed
