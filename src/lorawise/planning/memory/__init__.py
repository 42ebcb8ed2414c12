"""Memory: what a run will hold, by cause."""

from lorawise.planning.memory.model import Line as Line
from lorawise.planning.memory.model import Memory as Memory
from lorawise.planning.memory.model import Stack as Stack
from lorawise.planning.memory.model import Workload as Workload
from lorawise.planning.memory.predict import predict as predict
