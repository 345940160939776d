"""Batch size of every step of a run; it may grow during the first part of the run."""

from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple


class Stage(NamedTuple):
    """Consecutive steps of one batch size."""

    first_step: int
    first_example: int
    """Number of rows seen before the stage, over all epochs."""
    size: int
    """Rows per step."""


@dataclass(frozen=True)
class BatchSizes:
    """Batch size of every step and the number of rows seen before it, computed exactly for any step.

    The size is `final`. With `initial`, which must divide it, a step that begins at example e of the run takes
    initial · (1 + ⌊e · rises / warmup_examples⌋) rows, at most `final`, where rises = final / initial - 1: the size
    grows linearly with the examples seen, in multiples of `initial` (Megatron-LM's `--rampup-batch-size`). The size
    depends only on the example, so a run may resume anywhere: step `first_step` begins at example `first_example`.
    """

    final: int
    initial: int | None = None
    warmup_examples: int = 0
    first_step: int = 0
    first_example: int = 0

    def size(self, step: int) -> int:
        """Returns the number of rows of `step`, which must be at least `first_step`."""
        return self._stage(step).size

    def examples(self, step: int) -> int:
        """Returns the number of rows seen before `step`, over all epochs."""
        stage = self._stage(step)
        return stage.first_example + (step - stage.first_step) * stage.size

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        """Stages from `first_step` on, in ascending order of size, without the sizes that large steps skip."""
        stages = [Stage(self.first_step, self.first_example, self._size_at(self.first_example))]
        while stages[-1].size < self.final:
            step, example, size = stages[-1]
            num_steps = -(-(self._end_of(size) - example) // size)
            example += num_steps * size
            stages.append(Stage(step + num_steps, example, self._size_at(example)))
        return tuple(stages)

    def _stage(self, step: int) -> Stage:
        return self.stages[max(0, bisect_right(self._first_steps, step) - 1)]

    @cached_property
    def _first_steps(self) -> list[int]:
        return [stage.first_step for stage in self.stages]

    def _size_at(self, example: int) -> int:
        if self.initial is None or example >= self.warmup_examples:
            return self.final
        rises = self.final // self.initial - 1
        return self.initial * (1 + example * rises // self.warmup_examples)

    def _end_of(self, size: int) -> int:
        """Returns the first example at which a step takes more than `size` rows; `size` must be below `final`."""
        assert self.initial is not None
        rises = self.final // self.initial - 1
        return -(-(size // self.initial) * self.warmup_examples // rises)
