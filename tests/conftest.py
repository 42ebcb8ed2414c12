"""One setting for the whole suite: root importable, no model hub, the same threads, no clock in hypothesis."""

import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)
# How long an example takes says how busy the machine is, not whether a law holds.
settings.register_profile("lorawise", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("lorawise")
