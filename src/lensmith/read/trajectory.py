"""A text seen through a lens, for a notebook: `Lens.trajectory` gives one, with `.figure()` and `.frame()`."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lensmith.judge import readings
from lensmith.judge.readings import Readings
from lensmith.lens.lens import Lens
from lensmith.process.errors import InputError
from lensmith.report import heatmap
from lensmith.source.backbone import Backbone

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Trajectory:
    """What the norm lens and a tuned lens read at every layer and position of one text."""

    readings: Readings

    @classmethod
    def of(
        cls, lens: Lens, model: PreTrainedModel | Backbone, tokenizer: PreTrainedTokenizerBase, text: str, top_k: int
    ) -> "Trajectory":
        """Read `text`. A model that is no Backbone yet is taken apart and proven first.

        Raises:
            InputError: the text is empty or too long, or the lens is of another shape than the model.
        """
        backbone = model if isinstance(model, Backbone) else Backbone.from_model(model, tokenizer)
        if (lens.n_layers, lens.d_model) != (backbone.n_layers, backbone.d_model):
            raise InputError(
                f"trajectory: the lens is of {lens.n_layers} layers and d_model {lens.d_model}, the model has "
                f"{backbone.n_layers} and {backbone.d_model}"
            )
        ids = list(tokenizer(text)["input_ids"])
        return cls(readings.read(backbone, lens.to(backbone.device), ids, tokenizer, top_k))

    def figure(self, colour: str = "kl") -> go.Figure:
        """Norm lens and tuned lens side by side, layers upwards: the top token in each cell, the top five on hover.

        Args:
            colour: what colours the cells, one of entropy, kl, rank, probability.

        Raises:
            InputError: another word.
        """
        return heatmap.figure(self.readings.packed(), colour)

    def frame(self) -> "pd.DataFrame":
        """A row for each lens, layer and position: `readings.STATISTICS`, and top1, prob1, top2, ... as in the CSVs."""
        import pandas as pd

        return pd.concat([self._lens_frame(pd, name) for name in self.readings.by_lens], ignore_index=True)

    def _lens_frame(self, pd: Any, name: str) -> "pd.DataFrame":
        read, words = self.readings, self.readings.words
        reading = read.by_lens[name]
        n_rows, n, top_k = reading.top_ids.shape
        columns: dict[str, Any] = {
            "lens": name,
            "layer": np.repeat(reading.first_row + np.arange(n_rows), n),
            "pos": np.tile(np.arange(n), n_rows),
            "token": [words[token] for token in read.ids] * n_rows,
            "final_token": [words[token] for token in read.final_ids] * n_rows,
        }
        columns |= {key: values.ravel() for key, values in reading.statistics.items()}
        for place in range(top_k):
            columns[f"top{place + 1}"] = [words[token] for token in reading.top_ids[..., place].ravel().tolist()]
            columns[f"prob{place + 1}"] = reading.top_p[..., place].ravel()
        frame: pd.DataFrame = pd.DataFrame(columns)
        return frame
