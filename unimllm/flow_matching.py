"""Flow matching on straight lines: path, velocity, time grid, Euler's method, guidance. Pure functions.

t = 0 is noise, t = 1 is data:    x_t = t * x1 + (1 - t) * x0        velocity = x1 - x0

Shapes: B pictures; x is (B, ...), t is (B,).
"""

import math
from collections.abc import Callable

import torch


def path(x0: torch.Tensor, x1: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """The points at times t (B,) on the lines from noise x0 (B, ...) to data x1 (B, ...)."""
    t = t.view(-1, *[1] * (x1.dim() - 1)).to(x1.dtype)
    return t * x1 + (1 - t) * x0


def velocity(x0: torch.Tensor, x1: torch.Tensor) -> torch.Tensor:
    """d x_t / dt, the same everywhere on a line: x1 - x0, (B, ...)."""
    return x1 - x0


def time_shift(t: torch.Tensor, alpha: float) -> torch.Tensor:
    """alpha t / (1 + (alpha - 1) t): keeps 0 and 1; alpha < 1 spends more steps near the noise, > 1 near the data."""
    return alpha * t / (1 + (alpha - 1) * t)


def euler_schedule(
    num_steps: int, alpha: float = 1.0, start: float = 0.0, extra_step: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Where Euler's method evaluates the velocity, and how far it follows each.

    Args:
        num_steps: evaluations from noise to data; a later start takes its share of them, rounded down (at least 1).
        alpha: of `time_shift`.
        start: the time to begin at; drawings that begin from a picture have one above 0.
        extra_step: as CHEERS is released: the times reach 1, and there a last step of 1 / (number of times) is added
            to the way that is complete; a later start is shifted like the other times, whatever the mixture was.

    Returns:
        (times, steps), float32 (number of evaluations,) each; without the extra step the steps add up to 1 - start.

    Raises:
        ValueError: no step, a shift that is not above 0, or a start outside 0..1.
    """
    if num_steps < 1:
        raise ValueError(f"{num_steps} steps draw nothing; use 1 or more (the papers use 50 to 250)")
    if not (alpha > 0 and math.isfinite(alpha)):
        raise ValueError(f"the time shift is {alpha}; it must be above 0 (1: evenly spaced)")
    if not 0 <= start < 1:
        raise ValueError(f"the start is t = {start}; it must be at least 0 (noise) and below 1 (data)")
    count = max(1, int(num_steps * (1 - start) + 1e-6))  # 100 * (1 - 0.9) is 9.999...
    if extra_step:
        times = time_shift(torch.linspace(start, 1, count), alpha)
        return times, torch.cat([times.diff(), torch.tensor([1 / count])])
    first = float(time_shift(torch.tensor(start, dtype=torch.double), 1 / alpha))  # shifting it gives `start`
    ends = time_shift(torch.linspace(first, 1, count + 1, dtype=torch.double), alpha)
    return ends[:-1].float(), ends.diff().float()


def euler(
    x: torch.Tensor,
    velocity_at: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    times: torch.Tensor,
    steps: torch.Tensor,
    on_step: Callable[[], None] | None = None,
) -> torch.Tensor:
    """Follow a velocity from x (B, ...): x += step * velocity_at(x, t) at each time.

    Args:
        velocity_at: (x, t as a scalar tensor) -> (B, ...).
        times, steps: of `euler_schedule`.
        on_step: called after each step, for progress bars.
    """
    for t, step in zip(times.to(x.device), steps.tolist(), strict=True):
        x = x + step * velocity_at(x, t)
        if on_step:
            on_step()
    return x


def guide(conditional: torch.Tensor, unconditional: torch.Tensor, scale: float) -> torch.Tensor:
    """Classifier-free guidance: unconditional + scale * (conditional - unconditional); 1 is the conditional one."""
    return unconditional + scale * (conditional - unconditional)
