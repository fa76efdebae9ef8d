"""What the Gram matrix will be between two refreshes, from those that were measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

Rule = Literal["calibrated", "stale", "ema"]

# How much of an average a refresh leaves: of A in `ema`, of log kappa in `calibrated`.
MEMORY = 0.7

# The tensors of `Forecast`.
_LEARNT = ("squares", "cosines", "log_kappas", "losses")


class Forecast:
    """The norms and cosines of the K gradients, as far as refreshes have shown them.

    `stale`       those of the last refresh that held the objective, or the pair.
    `ema`         a moving average of A over the refreshes.
    `calibrated`  the last cosines, with norms that follow the batch: ||g_k||^2 ~ kappa_k q_k,
                  where q_k = ||dl_k/dp||^2 is known at every step and kappa_k is averaged in the
                  logarithm.

    All on the host in float64, from numbers that are the same on every rank.
    """

    def __init__(self, count: int, rule: Rule, every: int) -> None:
        self.rule = rule
        self.every = every
        # NaN: never measured.
        self.squares = torch.full((count,), math.nan, dtype=torch.float64)
        self.cosines = torch.full((count, count), math.nan, dtype=torch.float64)
        self.log_kappas = torch.full((count,), math.nan, dtype=torch.float64)
        self.losses = torch.full((count,), math.nan, dtype=torch.float64)
        """Of the last refresh that held the objective, where they were given."""
        self.since = every

    def due(self, present: Sequence[bool]) -> bool:
        """Return whether this step must be a refresh.

        Every so many steps, and where two objectives meet that never met at a refresh: their
        correlation would be a guess, and K (K - 1) / 2 such refreshes are all there can be.
        """
        here = torch.tensor(present)
        unknown = self.cosines[here][:, here].isnan().any()
        return self.since >= self.every or bool(unknown)

    def learn(
        self,
        norms: Sequence[float | None],
        cosines: Sequence[Sequence[float | None]],
        sensitivities: Tensor | None = None,
        losses: Tensor | None = None,
    ) -> None:
        """Take in a refresh.

        Args:
            norms: [K], None for an absent objective.
            cosines: [K, K], None where not measured.
            sensitivities: [K], the q_k of the refresh's whole batch, for `calibrated`.
            losses: [K], on the host.
        """
        here = torch.tensor([norm is not None for norm in norms])
        pairs = here[:, None] & here[None, :]
        squares = torch.tensor([norm or 0.0 for norm in norms], dtype=torch.float64) ** 2
        # A gradient of 0 has no direction: it is uncorrelated with all others.
        measured = torch.tensor([[c or 0.0 for c in row] for row in cosines], dtype=torch.float64)
        measured.fill_diagonal_(1.0)
        if self.rule == "ema":
            squares, measured = self._average(squares, measured)
        self.squares = torch.where(here, squares, self.squares)
        self.cosines = torch.where(pairs, measured, self.cosines)
        if sensitivities is not None and self.rule == "calibrated":
            kappas = (torch.where(here, squares, 0.0) / sensitivities.cpu()).log()
            mixed = torch.lerp(kappas, self.log_kappas, MEMORY)
            mixed = torch.where(self.log_kappas.isnan(), kappas, mixed)
            self.log_kappas = torch.where(kappas.isfinite(), mixed, self.log_kappas)
        if losses is not None:
            self.losses = torch.where(here, losses, self.losses)
        self.since = 1

    def predict(self, present: Sequence[bool], sensitivities: Tensor | None = None) -> Tensor:
        """Return the predicted A of the present objectives, [n, n] float64, and count the step.

        Args:
            present: [K]; none of them may be `due`.
            sensitivities: [K], the q_k of this step, for `calibrated`. Where one is 0 although
                the objective is present, or without them, its norm is the last measured one. NaN
                or inf is passed on to the result, for the solver to tell.
        """
        self.since += 1
        here = torch.tensor(present)
        squares = self.squares
        if sensitivities is not None:
            q = sensitivities.cpu().double()
            # No kappa, although measured: then the gradient was 0, or was not there to compare.
            known = ~self.log_kappas.isnan() & (q != 0)
            squares = torch.where(known, self.log_kappas.exp() * q, squares)
        cosines = _valid(self.cosines[here][:, here])
        norms = squares[here].sqrt()
        return cosines * norms[:, None] * norms[None, :]

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs, the same on every rank.

        Every number in it is finite: what was never measured is 0, and false under KEY_known.
        """
        state: dict[str, Any] = {"since": self.since}
        for key in _LEARNT:
            values: Tensor = getattr(self, key)
            state[key] = values.nan_to_num(0.0)
            state[f"{key}_known"] = ~values.isnan()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`; an empty one (of another mode) begins with a refresh.

        Raises:
            ValueError: it is that of another number of objectives.
        """
        if not state:
            return
        if state["squares"].shape != self.squares.shape:
            raise ValueError(
                f"the balancer's state is of {len(state['squares'])} objectives, this run has "
                f"{len(self.squares)}"
            )
        for key in _LEARNT:
            if key not in state:
                continue  # a checkpoint from before it was kept
            values = state[key].double()
            # A checkpoint from before there was KEY_known has NaN in the place of what is unknown.
            known = state.get(f"{key}_known", ~values.isnan())
            setattr(self, key, values.masked_fill(~known, math.nan))
        self.since = int(state["since"])

    def _average(self, squares: Tensor, cosines: Tensor) -> tuple[Tensor, Tensor]:
        """Return norms and cosines of the moving average of A."""
        old_norms, norms = self.squares.sqrt(), squares.sqrt()
        old = self.cosines * old_norms[:, None] * old_norms[None, :]
        new = cosines * norms[:, None] * norms[None, :]
        mean = torch.where(old.isnan(), new, torch.lerp(new, old, MEMORY))
        norms = mean.diagonal().sqrt()
        scale = norms[:, None] * norms[None, :]
        return mean.diagonal(), torch.where(scale > 0, mean / scale, cosines)


def _valid(cosines: Tensor) -> Tensor:
    """Return the nearest by shrinking of what is a matrix of cosines.

    Cosines of different refreshes need not fit together: then all are drawn towards 0.
    """
    lowest = float(torch.linalg.eigvalsh(cosines)[0])
    if lowest >= 0.0:
        return cosines
    return (cosines - lowest * torch.eye(len(cosines), dtype=cosines.dtype)) / (1.0 - lowest)
