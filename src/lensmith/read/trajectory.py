"""A text seen through a lens, for a notebook: `Reader.trajectory` gives one."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots

from lensmith.judge import walk
from lensmith.judge.trajectories import LENSES, STATISTICS, Readings
from lensmith.lens.lens import Lens
from lensmith.process import wording
from lensmith.process.errors import InputError
from lensmith.read.text import NOTHING, Text, word
from lensmith.release.pretrained import StreamedLens
from lensmith.report import heatmap
from lensmith.source.backbone import Backbone
from lensmith.source.borrowed import evaluating

KEYS = ["lens", "layer", "pos"]


@dataclass(frozen=True)
class Trajectory:
    """What the norm lens and a tuned lens read at layers and positions of one text."""

    backbone: Backbone
    lens: Lens | StreamedLens
    text: Text
    readings: Readings
    target_ids: tuple[int, ...] | None  # None for the tokens that are first at any layer

    def __repr__(self) -> str:
        tuned = self.readings.by_lens["tuned"]
        n_layers, n_tokens, top_k = tuned.top_ids.shape
        return f"Trajectory({n_tokens} tokens, {n_layers} layers, lenses={', '.join(LENSES)}, top_k={top_k})"

    def __sub__(self, other: "Trajectory") -> "TrajectoryDifference":
        """This trajectory less another of the same text: of another lens, or of another model.

        Raises:
            InputError: the other is of other tokens, positions or layers.
        """
        ours, theirs = (
            (each.readings.ids, each.readings.positions, [reading.layers for reading in each.readings.by_lens.values()])
            for each in (self, other)
        )
        if ours != theirs:
            raise InputError(f"trajectories of other tokens, positions or layers cannot be subtracted. {NOTHING}")
        return TrajectoryDifference(self, other)

    def figure(self, colour: str = "kl") -> go.Figure:
        """Norm lens and tuned lens side by side, layers upwards: the top token in each cell, the top five on hover.

        Args:
            colour: what colours the cells, one of entropy, kl, rank, probability.

        Raises:
            InputError: another word.
        """
        return heatmap.figure(self.readings.packed(), colour)

    def to_html(self, colour: str = "kl") -> str:
        """The figure as one page that needs no network."""
        return str(self.figure(colour).to_html(include_plotlyjs=True))

    def frame(self) -> pd.DataFrame:
        """A row for each lens, layer and position.

        Columns: lens, layer, pos, token, role (of chats), final_token (the model's own answer),
        `trajectories.STATISTICS`, and the likeliest tokens with their probabilities, top1, prob1, top2, ....
        """
        words, positions = self.readings.words, self.readings.positions
        frames = []
        for lens, reading in self.readings.by_lens.items():
            n_layers, n_tokens, top_k = reading.top_ids.shape
            columns: dict[str, Any] = {
                "lens": lens,
                "layer": np.repeat(reading.layers, n_tokens),
                "pos": np.tile(positions, n_layers),
                "token": [words[token] for token in self.readings.ids] * n_layers,
            }
            if self.text.roles is not None:
                columns["role"] = [self.text.roles[position] for position in positions] * n_layers
            columns["final_token"] = [words[token] for token in self.readings.final_ids] * n_layers
            columns |= {name: values.ravel() for name, values in reading.statistics.items()}
            for k in range(top_k):
                columns[f"top{k + 1}"] = [words[token] for token in reading.top_ids[..., k].ravel().tolist()]
                columns[f"prob{k + 1}"] = reading.top_p[..., k].ravel()
            frames.append(pd.DataFrame(columns))
        return pd.concat(frames, ignore_index=True)

    @torch.inference_mode()
    def targets(self) -> pd.DataFrame:
        """Tokens followed over the layers: a row for each lens, layer, position and target, with its rank and p.

        Without targets of their own, each position has the tokens that are first there at any layer of either lens.
        """
        readings, positions = self.readings, self.readings.positions
        tops = np.concatenate([reading.top_ids[..., 0] for reading in readings.by_lens.values()]).T.tolist()
        by_position = [list(dict.fromkeys(top) if self.target_ids is None else self.target_ids) for top in tops]
        widest = max(map(len, by_position))
        wanted = torch.tensor([ids + ids[:1] * (widest - len(ids)) for ids in by_position])
        with evaluating(self.backbone.model):
            resid = self.backbone.capture(torch.tensor([self.text.ids]), torch.tensor([positions]))[0]
        names = [(name, layer) for name, reading in readings.by_lens.items() for layer in reading.layers]
        head = self.backbone.head
        found = walk.read(head, resid, names, walk.head_reads(head, self.lens), targets=wanted.to(resid.device))
        rows = [
            (*name, positions[i], token, int(found[name].ranks[i, 1 + k]), float(found[name].log_q[i, 1 + k]))
            for name in names
            for i, ids in enumerate(by_position)
            for k, token in enumerate(ids)
        ]
        frame = pd.DataFrame(rows, columns=[*KEYS, "target", "rank", "p"])
        return frame.assign(target=[word(self.backbone, token) for token in frame["target"]], p=np.exp(frame["p"]))


@dataclass(frozen=True)
class TrajectoryDifference:
    """One trajectory less another, a - b, of two lenses or two models on the same text."""

    a: Trajectory
    b: Trajectory

    def frame(self) -> pd.DataFrame:
        """A row for each lens, layer and position: a's top1 and b's, top1_b, and STATISTICS of a less those of b."""
        ours, theirs = self.a.frame(), self.b.frame()
        frame = ours[[*KEYS, "token", "top1"]].assign(top1_b=theirs["top1"])
        return frame.assign(**{name: ours[name] - theirs[name] for name in STATISTICS})

    def figure(self, statistic: str = "kl_final_lens_bits") -> go.Figure:
        """One of STATISTICS, a less b, layer by token for each lens: blue where b has more, red where a has.

        Raises:
            InputError: there is no such statistic.
        """
        if statistic not in STATISTICS:
            raise InputError(f"figure: statistic is {statistic!r}, must be one of {', '.join(STATISTICS)}")
        readings, words = self.a.readings, self.a.readings.words
        frame = self.frame()
        drawn = make_subplots(
            cols=len(LENSES), shared_yaxes=True, subplot_titles=[wording.lens(name) for name in LENSES]
        )
        for column, name in enumerate(LENSES, 1):
            cells = frame[frame["lens"] == name].pivot_table(statistic, "layer", "pos", dropna=False)
            drawn.add_heatmap(
                x=list(range(len(readings.ids))), y=cells.index.tolist(), z=cells.to_numpy(), coloraxis="coloraxis",
                row=1, col=column,
            )  # fmt: skip
        tokens = heatmap.labels([words[token] for token in readings.ids], heatmap.SHORT)
        drawn.update_xaxes(tickvals=list(range(len(tokens))), ticktext=tokens, tickangle=-45)
        drawn.update_yaxes(title="layer", col=1)
        bar = {"title": {"text": f"{statistic}, a less b", "side": "right"}}
        return drawn.update_layout(template="none", coloraxis={"colorscale": "RdBu_r", "cmid": 0, "colorbar": bar})

    def to_html(self, statistic: str = "kl_final_lens_bits") -> str:
        """The figure as one page that needs no network."""
        return str(self.figure(statistic).to_html(include_plotlyjs=True))
