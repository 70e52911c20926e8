"""A text seen through a lens, for a notebook: `lensmith.trajectory` gives one."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lensmith.judge import trajectories
from lensmith.judge.trajectories import Readings
from lensmith.lens.lens import Lens
from lensmith.process.errors import InputError
from lensmith.release.pretrained import StreamedLens
from lensmith.report import heatmap
from lensmith.source.backbone import Backbone
from lensmith.source.borrowed import borrowed
from lensmith.source.tokenizer import Encoder


@dataclass(frozen=True)
class Trajectory:
    """What the norm lens and a tuned lens read at every layer and position of one text."""

    readings: Readings

    @classmethod
    def of(
        cls,
        lens: Lens | StreamedLens,
        model: PreTrainedModel | Backbone,
        tokenizer: PreTrainedTokenizerBase,
        text: str,
        top_k: int,
    ) -> "Trajectory":
        """`lensmith.trajectory`, which says what the arguments and errors are."""
        if not isinstance(text, str):
            raise InputError(f"trajectory: text is a {type(text).__name__}, must be one text. Call it once for each.")
        if not text:
            raise InputError("trajectory: the text is empty, must hold at least one token")
        if top_k < 1:
            raise InputError(f"trajectory: top_k is {top_k}, must be at least 1")
        with borrowed(model, tokenizer) as backbone:
            token_ids = Encoder(tokenizer, "tokenizer", backbone.model.config)(text)
            lens.check_head(backbone.head)
            return cls(trajectories.read(backbone, lens.to(backbone.device), token_ids, tokenizer, top_k=top_k))

    def __repr__(self) -> str:
        by_lens = self.readings.by_lens
        n_layers, n_tokens, top_k = by_lens["tuned"].top_ids.shape
        return f"Trajectory({n_tokens} tokens, n_layers={n_layers}, lenses={', '.join(by_lens)}, top_k={top_k})"

    def figure(self, colour: str = "kl") -> go.Figure:
        """Norm lens and tuned lens side by side, layers upwards: the top token in each cell, the top five on hover.

        Args:
            colour: what colours the cells, one of entropy, kl, rank, probability.

        Raises:
            InputError: another word.
        """
        return heatmap.figure(self.readings.packed(), colour)

    def frame(self) -> pd.DataFrame:
        """A row for each lens, layer and position.

        Columns: lens, layer, pos, token, final_token (the model's own answer), `trajectories.STATISTICS`, and the
        likeliest tokens with their probabilities, top1, prob1, top2, ... as in the CSVs.
        """
        words, ids, final_ids = self.readings.words, self.readings.ids, self.readings.final_ids
        frames = []
        for lens, reading in self.readings.by_lens.items():
            n_layers, n_tokens, top_k = reading.top_ids.shape
            columns: dict[str, Any] = {
                "lens": lens,
                "layer": np.repeat(reading.first_layer + np.arange(n_layers), n_tokens),
                "pos": np.tile(np.arange(n_tokens), n_layers),
                "token": [words[token] for token in ids] * n_layers,
                "final_token": [words[token] for token in final_ids] * n_layers,
            }
            columns |= {name: values.ravel() for name, values in reading.statistics.items()}
            for k in range(top_k):
                columns[f"top{k + 1}"] = [words[token] for token in reading.top_ids[..., k].ravel().tolist()]
                columns[f"prob{k + 1}"] = reading.top_p[..., k].ravel()
            frames.append(pd.DataFrame(columns))
        return pd.concat(frames, ignore_index=True)
