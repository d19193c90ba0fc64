"""Where SchedulingParams lives."""

from tensorrt_llm._classes import KNOWN

SchedulingParams = KNOWN["SchedulingParams"]
